"""Pretrained networks, one way in: every one takes float32 RGB in [0, 255] and returns features.

The scaling that a network was trained with comes with it, as its first layers, so it is done once
and nobody has to know it. Only layers of Keras (and KerasHub, for its networks) are used: a saved
model reloads in safe mode and without tlkeras.
"""

import difflib
import hashlib
import inspect
import json
import os
import warnings
from contextlib import contextmanager
from pathlib import Path

import keras
import numpy as np

from tlkeras import paths
from tlkeras.blocks import find_blocks

PRETRAINED = "pretrained"


def load_backbone(
    source: str | os.PathLike | keras.Model,
    image_size: int | tuple[int, int] | None = None,
    weights: str | None = PRETRAINED,
) -> keras.Model:
    """Loads a network without its head.

    Args:
        source: one of
            - a preset that comes with tlkeras, such as `glyph_resnet` (no internet needed);
            - a name from `keras.applications`, in any case: `MobileNetV2`;
            - a KerasHub preset name, a `kaggle://` or `hf://` handle, or a preset folder;
            - a `.keras` file, read in safe mode; a Dense classifier at its end is cut off;
            - a `keras.Model`, returned as it is.
            A file or a model keeps whatever scaling it has: none is added.
        image_size: of the images it will be given: pixels a side, or (height, width). None: any.
            A network that wants one size only gets a resizing layer in front.
        weights: "pretrained", or None for the same network untrained (the fair baseline).

    Returns:
        A functional model from images (batch, height, width, 3) to a feature map
        (batch, height, width, channels), tokens (batch, tokens, channels) or vectors. Text and
        image-text networks keep their dictionary of inputs and get no preprocessing.

    Raises:
        ValueError: unknown name; a preset whose files are not those its card lists.
        ConnectionError: the weights are not on this machine and cannot be downloaded.
    """
    if weights not in (PRETRAINED, "imagenet", None):
        raise ValueError(f"weights must be 'pretrained' or None, not {weights!r}.")
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if isinstance(source, keras.Model):
        return _model(source, size, weights)
    name, path = str(source), Path(source).expanduser()
    bundled = {folder.name: folder for folder in paths.presets()}
    applications = {n.lower(): function for n, function in _applications().items()}
    if name in bundled:
        return _preset(name, bundled[name], size, weights)
    if path.suffix == ".keras" or path.is_file():
        return _file(path, size, weights)
    if path.is_dir():
        return _preset(path.name, path, size, weights)
    if name.lower() in applications:
        return _application(applications[name.lower()], size, weights)
    if "://" in name or name in _hub_names():
        return _preset(name.rpartition("/")[2], name, size, weights)
    raise ValueError(_unknown(name))


def damaged_files(folder: Path) -> list[str]:
    """Files of a preset that are missing, or not those whose SHA-256 its `card.json` lists.

    A folder without a `card.json` (one of your own) has nothing to compare with.
    """
    card = folder / "card.json"
    listed = json.loads(card.read_text(encoding="utf-8"))["files"] if card.exists() else {}
    return [
        name
        for name, expected in listed.items()
        if not (folder / name).is_file()
        or hashlib.sha256((folder / name).read_bytes()).hexdigest() != expected
    ]


def _preset(name: str, preset: Path | str, size, weights) -> keras.Model:
    """A KerasHub preset: its network behind the scaling of its image converter."""
    if isinstance(preset, Path) and (damaged := damaged_files(preset)):
        raise ValueError(
            f"Preset {name}: {', '.join(damaged)} in {preset} is not the file that card.json "
            "lists (its SHA-256 differs). Get the folder again: `git checkout` it, or reinstall "
            "tlkeras."
        )
    import keras_hub

    with _downloads(name):
        network = keras_hub.models.Backbone.from_preset(
            str(preset), load_weights=weights is not None
        )
    if not isinstance(network.input, keras.KerasTensor) or len(network.input.shape) != 4:
        return network  # takes text, or text beside images
    image, x = _image(size, network.input.shape[1:3])
    return keras.Model(image, network(_scaled(x, name, preset)), name=name)


def _scaled(x, name: str, preset):
    """The image, scaled as the preset's image converter does it."""
    import keras_hub

    try:
        with _downloads(name):
            converter = keras_hub.layers.ImageConverter.from_preset(str(preset))
    except (ValueError, FileNotFoundError):
        warnings.warn(
            f"Preset {name} has no image_converter.json: pixels go in as they are, in [0, 255].",
            stacklevel=4,
        )
        return x
    scale = 1.0 if converter.scale is None else converter.scale
    offset = 0.0 if converter.offset is None else converter.offset
    return keras.layers.Rescaling(scale, offset, name="scale")(x)


def _application(function, size, weights) -> keras.Model:
    """A network of `keras.applications`, its `preprocess_input` in front as layers."""
    image, _ = _image(size, (None, None))
    scaled = _as_layers(inspect.getmodule(function).preprocess_input, image)
    shape = (*size, 3) if size else None
    with _downloads(function.__name__, f"; weights=None builds {function.__name__} untrained"):
        network = function(
            include_top=False,
            weights=None if weights is None else "imagenet",
            input_tensor=scaled,
            input_shape=shape,
            name=function.__name__.lower(),
        )
    return keras.Model(image, network.output, name=network.name)  # one input, not a list of one


def _as_layers(preprocess, x):
    """What `preprocess` does to an image, as layers: a scale and an offset, perhaps RGB to BGR.

    Found by asking it about black and about the pure colours; it has to be linear.
    """
    offset = preprocess(np.zeros((1, 1, 3)))[0, 0]
    colours = np.stack([preprocess(255 * colour[None, None])[0, 0] for colour in np.eye(3)])
    matrix = (colours - offset) / 255  # row: channel in; column: channel out
    flipped = bool(matrix[0, 2])
    if flipped:
        matrix, offset = matrix[:, ::-1], offset[::-1]
    scale = np.diag(matrix)
    if not np.allclose(matrix, np.diag(scale)):
        raise ValueError(f"{preprocess} mixes channels: it cannot be written as a scaling.")
    if not (np.allclose(scale, 1) and np.allclose(offset, 0)):
        x = keras.layers.Rescaling(_short(scale), _short(offset), name="scale")(x)
    return keras.ops.flip(x, axis=-1) if flipped else x


def _short(values: np.ndarray) -> float | list[float]:
    return float(values[0]) if np.ptp(values) == 0 else [float(value) for value in values]


def _image(size, wanted) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    """An input for images of `size` (None: any), resized if the network wants another one."""
    any_size = None in wanted
    image = keras.Input((*(size or ((None, None) if any_size else wanted)), 3), name="image")
    if any_size or tuple(wanted) == image.shape[1:3]:
        return image, image
    return image, keras.layers.Resizing(*wanted, name="resize")(image)


def _file(path: Path, size, weights) -> keras.Model:
    if not path.is_file():
        raise FileNotFoundError(f"No file {str(path)!r}.")
    if path.suffix != ".keras":
        raise ValueError(f"{path} is no .keras file: save the model with model.save('x.keras').")
    import keras_hub  # noqa: F401  (a saved KerasHub network is found through its registration)

    model = keras.saving.load_model(path, compile=False)
    blocks = find_blocks(model)
    last = blocks[-1]
    if last.role == "head" and any(isinstance(layer, keras.layers.Dense) for layer in last.layers):
        below, _ = blocks.split(blocks[-2].name)
        model = keras.Model(below.input, below.output, name=path.stem)
    return _model(model, size, weights)


def _model(model: keras.Model, size, weights) -> keras.Model:
    if size and any(
        own not in (None, wanted) for own, wanted in zip(model.input_shape[1:3], size, strict=True)
    ):
        raise ValueError(
            f"{model.name} takes images of shape {model.input_shape[1:]}, not {tuple(size)}: "
            "load the data at that size."
        )
    return keras.models.clone_model(model) if weights is None else model


@contextmanager
def _downloads(name: str, otherwise: str = ""):
    """Turns whatever a failed download raises into one error that says what to do."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`input_shape` is undefined or non-square")
            yield
    except (ValueError, TypeError, ImportError, FileNotFoundError):
        raise  # not a matter of the network
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConnectionError(
            f"Cannot get the weights of {name!r}. Without the internet use "
            f"{_offline()}{otherwise}. ({reason[:200]})"
        ) from error


def _applications() -> dict:
    functions = vars(keras.applications).items()
    return {name: function for name, function in functions if inspect.isfunction(function)}


def _hub_names() -> set[str]:
    import keras_hub

    return set(keras_hub.models.Backbone.presets)


def _offline() -> str:
    return " or ".join(repr(folder.name) for folder in paths.presets()) or "a .keras file"


def _unknown(name: str) -> str:
    known = [folder.name for folder in paths.presets()] + [*_applications(), *_hub_names()]
    lower = {one.lower(): one for one in known}
    near = [lower[n] for n in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.6)]
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return (
        f"No backbone and no file is called {name!r}.{hint} Expected {_offline()} (no internet "
        "needed), a keras.applications name, a KerasHub preset, a path, or a keras.Model."
    )
