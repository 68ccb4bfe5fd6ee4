"""Loads pretrained networks. All of them take float32 RGB in [0, 255] and return features.

Each network contains the scaling it was trained with as its first layers, so you do not have to
know it. Only layers of Keras (and of KerasHub, for its networks) are used: a saved model can be
loaded in safe mode and without tlkeras.
"""

import difflib
import os
from pathlib import Path

import keras

from tlkeras.backbones import fetching, kerascv
from tlkeras.backbones.applications import application, functions
from tlkeras.backbones.presets import (
    Size,
    behind_an_image,
    load_preset,
    load_task_preset,
    towerless,
)
from tlkeras.blocks.find import find_blocks
from tlkeras.utils import paths


def load_backbone(
    source: str | os.PathLike | keras.Model,
    image_size: int | tuple[int, int] | None = None,
    weights: str | None = "pretrained",
    *,
    tower: str | None = None,
    profile: str | None = None,
) -> keras.Model:
    """Load a network without its head.

    Args:
        source: one of
            - a preset that comes with tlkeras (no internet needed), such as `efficientnet_lite0`,
              trained on photographs, or `glyph_resnet`, trained on printed letters;
            - a preset folder, for example your own;
            - a `.keras` file, read in safe mode; a Dense classifier at its end is cut off;
            - a `keras.Model`, which is returned unchanged if weights are "pretrained";
            - online: a name from `keras.applications`, in any case: `MobileNetV2`;
            - online: a KerasHub preset name, a `kaggle://` or `hf://` handle;
            - online: `keras_cv://` and a KerasCV preset name: `keras_cv://resnet50_v2_imagenet`.
            A file or a model keeps the scaling that it has; none is added.
        image_size: size of the input images: pixels per side, or (height, width). None: any size.
            A network that takes only one size gets a resizing layer in front.
        weights: "pretrained", or None for the same network untrained (the fair baseline). Networks
            of `keras.applications`, and KerasCV's ResNets and DenseNets, then need no download.
        tower: for networks for images and text (CLIP, SigLIP): "image" or "text" loads only that
            half. The vectors of both are in one space and can be compared by cosine similarity.
        profile: "online" allows weights to be downloaded; "offline" does not. None: the
            environment variable TLKERAS_PROFILE, else offline.

    Returns:
        A functional model from images (batch, height, width, 3) to a feature map
        (batch, height, width, channels), tokens (batch, tokens, channels) or vectors. Text and
        image-text networks keep their dictionary of inputs and get no preprocessing; a text
        tower takes {"token_ids": (batch, tokens)}.

    Raises:
        ValueError: the name is unknown; the files of a preset are not those its card lists; or the
            network has no such tower.
        FileNotFoundError: the `.keras` file does not exist.
        ConnectionError: the weights need a download, which fails or is not allowed offline.

    >>> backbone = tlk.load_backbone("efficientnet_lite0", image_size=96)
    >>> backbone.input_shape, backbone.output_shape
    ((None, 96, 96, 3), (None, 3, 3, 1280))
    >>> tlk.load_backbone("MobileNetV2")
    Traceback (most recent call last):
    ConnectionError: 'MobileNetV2' is an online backbone: ... the profile is offline. ...
    """
    if weights not in ("pretrained", "imagenet", None):
        raise ValueError(f"weights must be 'pretrained' or None, not {weights!r}.")
    if tower not in ("image", "text", None):
        raise ValueError(f"tower must be 'image', 'text' or None, not {tower!r}.")
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if isinstance(source, keras.Model):
        return towerless(_model(source, size, weights), tower)
    name, path = str(source), Path(source).expanduser()
    bundled = {folder.name: folder for folder in paths.presets()}
    applications = {n.lower(): function for n, function in functions().items()}
    if name in bundled:
        return load_preset(name, bundled[name], size, weights, tower)
    if path.suffix == ".keras" or path.is_file():
        return towerless(_file(path, size, weights), tower)
    if path.is_dir():
        return load_preset(path.name, path, size, weights, tower)
    if name.lower() in applications:
        return towerless(application(applications[name.lower()], size, weights, profile), tower)
    if name.startswith(kerascv.PREFIX):
        network = kerascv.load(name, weights is not None, profile)
        return towerless(behind_an_image(network, size), tower)
    if "://" in name or name in _hub_names():
        fetching.refuse_offline(name, profile)
        return load_preset(name.rpartition("/")[2], name, size, weights, tower)
    raise ValueError(_unknown(name))


def load_classifier(source: str | os.PathLike = "efficientnet_lite0") -> keras.Model:
    """Load a complete network, including the head it was pretrained with.

    This shows what a network can do before any transfer. For ImageNet's 1,000 classes, KerasHub's
    `decode_imagenet_predictions` gives the names in the order of the outputs.

    Args:
        source: a preset that comes with tlkeras and has a classifier, or a KerasHub preset folder
            that has one.

    Returns:
        A functional model from images (batch, height, width, 3) of any size, float32 RGB in
        [0, 255], to probabilities (batch, classes). It uses the central square of each image,
        resized to the size it was trained at.

    Raises:
        ValueError: the preset does not exist or has no classifier, or its files are not those its
            card lists.

    >>> from keras_hub.utils import decode_imagenet_predictions
    >>> from sklearn.datasets import load_sample_image
    >>> classifier = tlk.load_classifier()
    >>> guesses = classifier.predict(load_sample_image("china.jpg")[None], verbose=0)
    >>> [name for name, probability in decode_imagenet_predictions(guesses, top=2)[0]]
    ['palace', 'bell_cote']
    """
    bundled = {folder.name: folder for folder in paths.presets()}
    folder = bundled.get(str(source)) or Path(source).expanduser()
    if not (folder / "task.json").is_file():
        known = [name for name, place in bundled.items() if (place / "task.json").is_file()]
        raise ValueError(
            f"{str(source)!r} is no preset with a classifier: expected {' or '.join(known)}, or a "
            "KerasHub preset folder with a task.json. tlk.load_backbone loads networks without "
            "their heads."
        )
    return load_task_preset(folder.name, folder)


def _file(path: Path, size: Size, weights: str | None) -> keras.Model:
    if not path.is_file():
        raise FileNotFoundError(f"No file {str(path)!r}.")
    if path.suffix != ".keras":
        raise ValueError(f"{path} is no .keras file: save the model with model.save('x.keras').")
    model = keras.saving.load_model(path, compile=False)
    blocks = find_blocks(model)
    last = blocks[-1]
    dense = any(isinstance(layer, keras.layers.Dense) for layer in last.layers)
    if last.role == "head" and dense and len(blocks) > 1:
        below, _ = blocks.split(blocks[-2].name)
        model = keras.Model(below.input, below.output, name=path.stem)
    return _model(model, size, weights)


def _model(model: keras.Model, size: Size, weights: str | None) -> keras.Model:
    if size and any(
        own not in (None, wanted) for own, wanted in zip(model.input_shape[1:3], size, strict=False)
    ):
        raise ValueError(
            f"{model.name} takes images of shape {model.input_shape[1:]}, not {tuple(size)}: "
            "load the data at that size."
        )
    return keras.models.clone_model(model) if weights is None else model


def _hub_names() -> set[str]:
    import keras_hub

    return set(keras_hub.models.Backbone.presets)


def _unknown(name: str) -> str:
    known = [folder.name for folder in paths.presets()] + [*functions(), *_hub_names()]
    lower = {one.lower(): one for one in known}
    near = [lower[n] for n in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.6)]
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return (
        f"No backbone and no file is called {name!r}.{hint} Expected {fetching.stand_in()} (no "
        "internet needed), a path, a keras.Model; or online a keras.applications name, a KerasHub "
        f"preset, or {kerascv.PREFIX} and a KerasCV preset."
    )
