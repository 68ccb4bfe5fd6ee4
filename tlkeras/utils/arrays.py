"""Arrays and JSON in one file that is safe to read even from an untrusted source.

The file is a zip archive like NumPy's npz, which `np.load` can read, with a `record.json` next to
the arrays. It contains no pickle and is not compressed, so reading it takes no more memory than the
size of the file.
"""

import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import numpy as np

RECORD = "record.json"


def write(
    path: str | os.PathLike, record: dict[str, Any], arrays: Mapping[str, np.ndarray]
) -> Path:
    """Write the file atomically, replacing an earlier one. Arrays are stored as float32."""
    path = Path(path).expanduser()
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_STORED) as file:
            file.writestr(RECORD, json.dumps(record, indent=1, allow_nan=False))
            for name, array in arrays.items():
                with file.open(f"{name}.npy", "w") as member:
                    values = np.ascontiguousarray(array, "<f4").reshape(np.shape(array))
                    np.lib.format.write_array(member, values, version=(1, 0), allow_pickle=False)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def read_record(path: str | os.PathLike, kind: str) -> dict[str, Any]:
    """Return the JSON record of a file. Raises ValueError if its "kind" is not `kind`."""
    try:
        with zipfile.ZipFile(Path(path).expanduser()) as file, _member(file, RECORD) as member:
            record = json.load(member)
    except FileNotFoundError:
        raise ValueError(f"Expected a file of {kind}; found no {str(path)!r}.") from None
    except Exception as error:  # zipfile, zlib and JSON raise many types for damaged bytes
        raise _damaged(path, kind, error) from error
    if not isinstance(record, dict) or record.get("kind") != kind:
        raise ValueError(f"Expected a file of {kind}; {path} is another file.")
    return record


def read(
    path: str | os.PathLike, kind: str, shapes: Mapping[str, Sequence[int]]
) -> dict[str, np.ndarray]:
    """Return the float32 arrays named in `shapes`.

    Raises ValueError unless each array has its shape and all its values are finite.
    """
    found = {}
    try:
        with zipfile.ZipFile(Path(path).expanduser()) as file:
            for name, shape in shapes.items():
                found[name] = _array(file, f"{name}.npy", tuple(shape))
    except Exception as error:  # zipfile, zlib and NumPy raise many types for damaged bytes
        raise _damaged(path, kind, error) from error
    return found


def _array(file: zipfile.ZipFile, name: str, wanted: tuple[int, ...]) -> np.ndarray:
    with _member(file, name) as member:
        stream = cast(BinaryIO, member)
        version = np.lib.format.read_magic(stream)
        shape, by_column, dtype = np.lib.format.read_array_header_1_0(stream)
        if version != (1, 0) or by_column or dtype != np.dtype("<f4") or shape != wanted:
            raise ValueError(f"{name} is {dtype} {shape} where float32 {wanted} is expected")
        array = np.frombuffer(stream.read(), "<f4").reshape(wanted)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has values that are not finite")
    return array


def _member(file: zipfile.ZipFile, name: str) -> IO[bytes]:
    if file.getinfo(name).compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is packed, which tlkeras never writes")
    return file.open(name)


def _damaged(path: str | os.PathLike, kind: str, error: Exception) -> ValueError:
    return ValueError(
        f"{path} cannot be read as a file of {kind} ({error}): it is damaged, cut short or "
        "another file. Put a whole copy of it in its place, or save it again."
    )
