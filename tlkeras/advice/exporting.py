"""Export a run's model for use without Keras, and check that its outputs are the same."""

import contextlib
import importlib.util
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

from tlkeras.advice.trained_model import TrainedModel
from tlkeras.runs.folder import EXPORTED

CLOSE = 1e-3  # largest difference allowed between the outputs
TRIED = 8  # number of images on which they are compared


class Format(NamedTuple):
    """Keras's name of a format, the name of the file, and the packages that write and read it."""

    keras: str
    file: str
    needs: tuple[str, ...]


FORMATS = {
    "onnx": Format("onnx", "model.onnx", ("tf2onnx", "onnx", "onnxruntime")),
    "litert": Format("litert", "model.tflite", ("ai_edge_litert",)),
    "savedmodel": Format("tf_saved_model", "saved_model", ()),
}


class Exported(NamedTuple):
    """Where the exported model is, and the largest difference from the model's own outputs."""

    path: Path
    difference: float


def export(
    run: Any, format: str = "onnx", path: str | os.PathLike | None = None, *, verbose: int = 0
) -> Exported:
    """Export a run's model for ONNX Runtime, LiteRT (TensorFlow Lite) or TensorFlow Serving.

    The exported model takes float32 pixels 0..255, (images, height, width, 3), and outputs
    probabilities in the order of the run's classes. It is read back and compared with the original
    on the same images. If the outputs differ, nothing is written.

    Args:
        run: the folder of a run, a Run, or a model that takes pixels.
        format: "onnx", "litert" or "savedmodel".
        path: the file to write, or the folder for a SavedModel. None: in the run's folder.
        verbose: 0 hides the output of the converters.

    Returns:
        The path, and the largest difference between the outputs.

    Raises:
        ValueError: for an unknown format, a missing path, a path that exists and was not made by
            an export, a model that Keras cannot write, or outputs that differ by more than 1e-3.
        ImportError: if a package is missing; says how to install it.

    >>> model = tlk.add_head(tlk.load_backbone("glyph_resnet_small", image_size=32), classes=2)
    >>> x, y = np.random.uniform(0, 255, (32, 32, 32, 3)), np.arange(32) % 2
    >>> run = tlk.fit_stages(model, tlk.recipes.head_only(1), (x, y), verbose=0)
    >>> tlk.export(run, "savedmodel", "exported").difference < 1e-5
    True
    """
    if format not in FORMATS:
        raise ValueError(f"Expected a format of {', '.join(FORMATS)}; found {format!r}.")
    chosen = FORMATS[format]
    _require(chosen.needs)
    target = _target(run, path, chosen)
    if target.exists() and target.name not in EXPORTED:
        raise ValueError(f"{target} exists already: choose another path, or remove it.")
    with TrainedModel(run) as trained, tempfile.TemporaryDirectory() as made:
        where = Path(made) / chosen.file
        spec = _spec(trained)
        with _silence(verbose):
            try:
                trained.model.export(
                    where, format=chosen.keras, input_signature=[spec], verbose=bool(verbose)
                )
            except Exception as error:  # converters raise exceptions of all kinds
                reason = " ".join(str(error).split())[:300]
                raise ValueError(
                    f"Keras {keras.__version__} cannot write this model as {format}: {reason}"
                ) from error
            ask = _READERS[format](where)
        images = _images(spec.shape[1:])
        given = np.asarray(trained.model.predict_on_batch(images))
        moved = float(np.abs(np.asarray(ask(images)) - given).max())
        if not moved <= CLOSE:
            raise ValueError(
                f"Expected the same outputs from {format}, to {CLOSE:g}; found a difference of "
                f"{moved:.2g}. Nothing was written: use another format."
            )
        _replace(where, target)
    return Exported(target, moved)


def _target(run: Any, path: str | os.PathLike | None, chosen: Format) -> Path:
    if path is not None:
        return Path(path).expanduser()
    folder = run if isinstance(run, str | os.PathLike) else getattr(run, "folder", None)
    if folder is None:
        raise ValueError("Expected a path to write to, as this run has no folder; found none.")
    return Path(folder).expanduser() / chosen.file


def _require(packages: tuple[str, ...]) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"Expected {', '.join(packages)} for this format; found no {', '.join(missing)}. "
            "Install them: pip install 'tlkeras[export]'"
        )


def _spec(trained: TrainedModel) -> keras.InputSpec:
    """Return the input's shape; sizes that the model leaves open are those of the run's images."""
    shape = trained.model.input_shape
    if not isinstance(shape, tuple) or len(shape) != 4:
        raise ValueError(f"Expected a model of images; found one that takes {shape}.")
    sides = trained.size or shape[1:3]
    name = trained.model.inputs[0].name
    return keras.InputSpec(shape=(None, *sides, shape[-1]), dtype="float32", name=name)


def _images(shape: tuple[int | None, ...]) -> np.ndarray:
    """Return noise images of different brightness, from fine to coarse."""
    height, width, channels = (side or 64 for side in shape)
    rng, images = np.random.default_rng(0), []
    for number in range(TRIED):
        grain = 2 ** (number % 4)
        rough = rng.uniform(0, 255, (-(-height // grain), -(-width // grain), channels))
        fine = rough.repeat(grain, axis=0).repeat(grain, axis=1)[:height, :width]
        images.append(fine * (number + 1) / TRIED)
    return np.array(images, "float32")


def _onnx(path: Path) -> Callable[[np.ndarray], Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def _litert(path: Path) -> Callable[[np.ndarray], Any]:
    from ai_edge_litert.interpreter import Interpreter

    reader = Interpreter(model_path=str(path))
    given, [made] = reader.get_input_details()[0], reader.get_output_details()

    def probabilities(images: np.ndarray) -> np.ndarray:
        reader.resize_tensor_input(given["index"], images.shape)
        reader.allocate_tensors()
        reader.set_tensor(given["index"], images)
        reader.invoke()
        return reader.get_tensor(made["index"])

    return probabilities


def _saved_model(path: Path) -> Callable[[np.ndarray], Any]:
    layer = keras.layers.TFSMLayer(path, call_endpoint="serve")
    return lambda images: keras.ops.convert_to_numpy(layer(images))


_READERS = {"onnx": _onnx, "litert": _litert, "savedmodel": _saved_model}


def _replace(made: Path, target: Path) -> None:
    """Move the new export to its place; it replaces an earlier one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_dir():
        shutil.rmtree(target)
    shutil.move(made, target)


@contextlib.contextmanager
def _silence(verbose: int) -> Iterator[None]:
    """Hide what the converters print, unless `verbose` is set."""
    if verbose:
        yield
        return
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
