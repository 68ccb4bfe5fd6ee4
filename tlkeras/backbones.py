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
from contextlib import nullcontext
from pathlib import Path

import keras
import numpy as np

from tlkeras import kerascv, paths, pretrained
from tlkeras.blocks import find_blocks

PRETRAINED = "pretrained"
TOWERS = ("image", "text")


def load_backbone(
    source: str | os.PathLike | keras.Model,
    image_size: int | tuple[int, int] | None = None,
    weights: str | None = PRETRAINED,
    *,
    tower: str | None = None,
    profile: str | None = None,
) -> keras.Model:
    """Loads a network without its head.

    Args:
        source: one of
            - a preset that comes with tlkeras, such as `glyph_resnet` (no internet needed);
            - a preset folder, one of your own for instance;
            - a `.keras` file, read in safe mode; a Dense classifier at its end is cut off;
            - a `keras.Model`, returned as it is;
            - online: a name from `keras.applications`, in any case: `MobileNetV2`;
            - online: a KerasHub preset name, a `kaggle://` or `hf://` handle;
            - online: `keras_cv://` and a KerasCV preset name: `keras_cv://resnet50_v2_imagenet`.
            A file or a model keeps whatever scaling it has: none is added.
        image_size: of the images it will be given: pixels a side, or (height, width). None: any.
            A network that wants one size only gets a resizing layer in front.
        weights: "pretrained", or None for the same network untrained (the fair baseline). Names
            of `keras.applications`, and KerasCV's ResNets and DenseNets, are then not downloaded.
        tower: of a network for images and text (CLIP, SigLIP): "image" or "text" gives that half
            alone. Their vectors are in one space: compare them by cosine.
        profile: "online" lets weights be downloaded; "offline" does not. None: as the environment
            variable TLKERAS_PROFILE says, else offline.

    Returns:
        A functional model from images (batch, height, width, 3) to a feature map
        (batch, height, width, channels), tokens (batch, tokens, channels) or vectors. Text and
        image-text networks keep their dictionary of inputs and get no preprocessing; a text
        tower takes {"token_ids": (batch, tokens)}.

    Raises:
        ValueError: unknown name; a preset whose files are not those its card lists; a tower of a
            network that has none.
        ConnectionError: the weights are to be downloaded, and cannot or, offline, must not be.
    """
    if weights not in (PRETRAINED, "imagenet", None):
        raise ValueError(f"weights must be 'pretrained' or None, not {weights!r}.")
    if tower not in (None, *TOWERS):
        raise ValueError(f"tower must be 'image', 'text' or None, not {tower!r}.")
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if isinstance(source, keras.Model):
        return _towerless(_model(source, size, weights), tower)
    name, path = str(source), Path(source).expanduser()
    bundled = {folder.name: folder for folder in paths.presets()}
    applications = {n.lower(): function for n, function in _applications().items()}
    if name in bundled:
        return _preset(name, bundled[name], size, weights, tower)
    if path.suffix == ".keras" or path.is_file():
        return _towerless(_file(path, size, weights), tower)
    if path.is_dir():
        return _preset(path.name, path, size, weights, tower)
    if name.lower() in applications:
        return _towerless(_application(applications[name.lower()], size, weights, profile), tower)
    if name.startswith(kerascv.PREFIX):
        network = kerascv.load(name, weights is not None, profile)
        return _towerless(_behind_an_image(network, size), tower)
    if "://" in name or name in _hub_names():
        pretrained.refuse_offline(name, profile)
        return _preset(name.rpartition("/")[2], name, size, weights, tower)
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


def _preset(name: str, preset: Path | str, size, weights, tower) -> keras.Model:
    """A KerasHub preset: its network behind the scaling of its image converter."""
    if isinstance(preset, Path) and (damaged := damaged_files(preset)):
        raise ValueError(
            f"Preset {name}: {', '.join(damaged)} in {preset} is not the file that card.json "
            "lists (its SHA-256 differs). Get the folder again: `git checkout` it, or reinstall "
            "tlkeras."
        )
    import keras_hub

    with pretrained.downloading(str(preset)) if isinstance(preset, str) else nullcontext():
        network = keras_hub.models.Backbone.from_preset(
            str(preset), load_weights=weights is not None
        )
        converter = _converter(preset)
    if tower is not None:
        return _tower(network, name, converter, size, tower)
    inputs = keras.tree.flatten(network.input)
    if len(inputs) > 1 or len(inputs[0].shape) != 4:
        return network  # takes text, or text beside images
    return _behind_an_image(network, size, name, _scaling(name, converter))


def _converter(preset):
    """The preset's image converter, which knows its scaling; None if it has none."""
    import keras_hub

    try:
        return keras_hub.layers.ImageConverter.from_preset(str(preset))
    except (ValueError, FileNotFoundError) as error:
        if type(error.__cause__).__name__ == "LocalEntryNotFoundError":
            raise  # Hugging Face's word for a lost connection
        return None


def _scaling(name: str, converter) -> keras.layers.Layer:
    if converter is None:
        warnings.warn(
            f"Preset {name} has no image_converter.json: pixels go in as they are, in [0, 255].",
            stacklevel=4,
        )
        return keras.layers.Identity(name="scale")
    scale = 1.0 if converter.scale is None else converter.scale
    offset = 0.0 if converter.offset is None else converter.offset
    return keras.layers.Rescaling(scale, offset, name="scale")


def _behind_an_image(network, size, name=None, scaling=lambda x: x) -> keras.Model:
    """The network with an input for images of `size`, resized and scaled as it wants them."""
    wanted = network.input  # one tensor, perhaps in a dictionary: {"images": ...}
    image, x = _image(size, keras.tree.flatten(wanted)[0].shape[1:3])
    x = scaling(x)
    features = network(dict.fromkeys(wanted, x) if isinstance(wanted, dict) else x)
    return keras.Model(image, features, name=name or network.name)


def _tower(network, name: str, converter, size, tower: str) -> keras.Model:
    """Half of a network for images and text, up to the vectors that are compared."""
    if not hasattr(network, "get_vision_embeddings"):
        return _towerless(network, tower)
    if tower == "text":
        tokens = keras.Input((None,), dtype="int32", name="token_ids")
        vectors = network.get_text_embeddings(tokens)
        return keras.Model({"token_ids": tokens}, vectors, name=f"{name}_text")
    image, x = _image(size, network.vision_encoder.image_shape[:2])
    vectors = network.get_vision_embeddings(_scaling(name, converter)(x))
    return keras.Model(image, vectors, name=f"{name}_image")


def _towerless(model: keras.Model, tower: str | None) -> keras.Model:
    if tower is not None:
        raise ValueError(
            f"{model.name} has no {tower} tower: expected the preset of a network for images and "
            "text such as CLIP or SigLIP. Leave out `tower`."
        )
    return model


def _application(function, size, weights, profile) -> keras.Model:
    """A network of `keras.applications`, its `preprocess_input` in front as layers."""
    name = function.__name__
    if weights is not None:
        pretrained.refuse_offline(name, profile, f"; weights=None builds {name} untrained")
    image, _ = _image(size, (None, None))
    scaled = _as_layers(inspect.getmodule(function).preprocess_input, image)
    with pretrained.from_keras(name), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`input_shape` is undefined or non-square")
        network = function(
            include_top=False,
            weights=None if weights is None else "imagenet",
            input_tensor=scaled,
            input_shape=(*size, 3) if size else None,
        )
    return keras.Model(image, network.output, name=name.lower())  # one input, not a list of one


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


def _applications() -> dict:
    functions = vars(keras.applications).items()
    return {name: function for name, function in functions if inspect.isfunction(function)}


def _hub_names() -> set[str]:
    import keras_hub

    return set(keras_hub.models.Backbone.presets)


def _unknown(name: str) -> str:
    known = [folder.name for folder in paths.presets()] + [*_applications(), *_hub_names()]
    lower = {one.lower(): one for one in known}
    near = [lower[n] for n in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.6)]
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return (
        f"No backbone and no file is called {name!r}.{hint} Expected {pretrained.stand_in()} (no "
        "internet needed), a path, a keras.Model; or online a keras.applications name, a KerasHub "
        f"preset, or {kerascv.PREFIX} and a KerasCV preset."
    )
