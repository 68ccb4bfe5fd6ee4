"""Numbers and JSON in one file that is safe to read wherever it comes from.

A zip file as NumPy's npz, read by `np.load`, with `record.json` beside the arrays: no pickle, and
nothing packed, so that reading takes no more memory than the file has bytes.
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
    """Writes the file, all at once, in place of an earlier one; arrays as float32."""
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
    """The JSON of a file that says it is of this `kind`. Raises ValueError if it is none."""
    try:
        with zipfile.ZipFile(Path(path).expanduser()) as file, _member(file, RECORD) as member:
            record = json.load(member)
    except FileNotFoundError:
        raise ValueError(f"Expected a file of {kind}; found no {str(path)!r}.") from None
    except Exception as error:  # whatever zipfile, zlib and JSON raise at odd bytes
        raise _damaged(path, kind, error) from error
    if not isinstance(record, dict) or record.get("kind") != kind:
        raise ValueError(f"Expected a file of {kind}; {path} is another file.")
    return record


def read(
    path: str | os.PathLike, kind: str, shapes: Mapping[str, Sequence[int]]
) -> dict[str, np.ndarray]:
    """The float32 arrays of these names. Raises ValueError unless each has its shape and is
    finite."""
    found = {}
    try:
        with zipfile.ZipFile(Path(path).expanduser()) as file:
            for name, shape in shapes.items():
                found[name] = _array(file, f"{name}.npy", tuple(shape))
    except Exception as error:  # whatever zipfile, zlib and NumPy raise at odd bytes
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
        raise ValueError(f"{name} holds what is no number")
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
