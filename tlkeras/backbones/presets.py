"""Loads KerasHub presets: a network with its image scaling in front, or one of its towers."""

import json
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import keras

from tlkeras.backbones import fetching
from tlkeras.blocks.internals import all_layers, forget_calls, functional
from tlkeras.utils import paths

COMPOSITE = ("CBABlock", "FusedMBConvBlock", "MBConvBlock")  # in KerasHub's EfficientNets

Size = tuple[int, int] | None  # height and width of images; None: any size


def damaged_files(folder: Path) -> list[str]:
    """Return the files of a preset that are missing or differ from the SHA-256 in its `card.json`.

    For a folder without a `card.json`, such as your own, there is nothing to compare with.
    """
    card = folder / "card.json"
    listed = json.loads(card.read_text(encoding="utf-8"))["files"] if card.exists() else {}
    return [
        name
        for name, expected in listed.items()
        if not (folder / name).is_file() or paths.digest(folder / name) != expected
    ]


def load_preset(
    name: str, preset: Path | str, size: Size, weights: str | None, tower: str | None
) -> keras.Model:
    """Load a KerasHub preset: its network, or one tower, with its image scaling in front."""
    if isinstance(preset, Path):
        _refuse_damaged(name, preset)
    import keras_hub

    with fetching.downloading(str(preset)) if isinstance(preset, str) else nullcontext():
        network = keras_hub.models.Backbone.from_preset(
            str(preset), load_weights=weights is not None
        )
        converter = _converter(preset)
    if tower is not None:
        return _tower(network, name, converter, size, tower)
    inputs = keras.tree.flatten(network.input)
    if len(inputs) > 1 or len(inputs[0].shape) != 4:
        return network  # takes text, or text and images
    return behind_an_image(network, size, name, _scaling(name, converter))


def load_task_preset(name: str, preset: Path) -> keras.Model:
    """Load the classifier of a KerasHub preset, from images of any size to probabilities.

    It uses the central square of each image, resized to the size in the preset's image converter.
    """
    _refuse_damaged(name, preset)
    import keras_hub

    config = json.loads((preset / "task.json").read_text(encoding="utf-8"))["config"]
    task = keras_hub.models.ImageClassifier.from_preset(
        str(preset), num_classes=config["num_classes"]
    )
    below = all_layers(task.backbone)  # KerasHub 0.24 passes their ids, which Keras does not accept
    keras.saving.load_weights(task, preset / "task.weights.h5", objects_to_skip=below)
    converter = _converter(preset)
    resize = keras.layers.Resizing(
        *converter.image_size, crop_to_aspect_ratio=True, antialias=True, name="resize"
    )
    scale = _scaling(name, converter)
    features = behind_an_image(task.backbone, None, name, lambda image: scale(resize(image)))
    for layer in (task.pooler, task.output_dense):
        forget_calls(layer)
    probabilities = task.output_dense(task.pooler(features.output))
    return keras.Model(features.input, probabilities, name=name)


def _refuse_damaged(name: str, folder: Path) -> None:
    if damaged := damaged_files(folder):
        raise ValueError(
            f"Preset {name}: {', '.join(damaged)} in {folder} is not the file that card.json "
            "lists (its SHA-256 differs). Get the folder again: `git checkout` it, or reinstall "
            "tlkeras."
        )


def _converter(preset: Path | str) -> Any:
    """Return the preset's image converter, which holds its scaling, or None if it has none."""
    import keras_hub

    try:
        return keras_hub.layers.ImageConverter.from_preset(str(preset))
    except (ValueError, FileNotFoundError) as error:
        if type(error.__cause__).__name__ == "LocalEntryNotFoundError":
            raise  # Hugging Face reports a lost connection this way
        return None


def _scaling(name: str, converter: Any) -> keras.layers.Layer:
    if converter is None:
        warnings.warn(
            f"Preset {name} has no image_converter.json: pixels go in as they are, in [0, 255].",
            stacklevel=4,
        )
        return keras.layers.Identity(name="scale")
    scale = 1.0 if converter.scale is None else converter.scale
    offset = 0.0 if converter.offset is None else converter.offset
    return keras.layers.Rescaling(scale, offset, name="scale")


def behind_an_image(
    network: keras.Model, size: Size, name: str | None = None, scaling: Callable = lambda x: x
) -> keras.Model:
    """Return the network with an input for images of `size`, which resizes and scales them.

    KerasHub saves a network by its constructor arguments, which loses what is frozen. If all layers
    are Keras's own, the graph is rebuilt as one that Keras saves layer by layer.
    """
    if any(type(layer).__name__ in COMPOSITE for layer in network.layers):
        network = _written_out(network)
    plain = all(type(layer).__module__.startswith("keras.") for layer in network.layers)
    if plain and functional(network) is not None:
        network = keras.Model(network.input, network.output, name=network.name)
    wanted = network.input  # one tensor, perhaps in a dictionary: {"images": ...}
    image, x = image_input(size, keras.tree.flatten(wanted)[0].shape[1:3])
    x = scaling(x)
    features = network(dict.fromkeys(wanted, x) if isinstance(wanted, dict) else x)
    return keras.Model(image, features, name=name or network.name)


def _written_out(network: keras.Model) -> keras.Model:
    """Return the same layers, with those inside KerasHub's blocks as nodes of their own."""

    def call(layer: keras.Layer, *args: Any, **options: Any) -> Any:
        inside = type(layer).__name__ in COMPOSITE
        return layer.call(*args) if inside else layer(*args, **options)

    plain = keras.Model(network.input, network.output, name=network.name)
    for layer in all_layers(plain):
        if not isinstance(layer, keras.layers.InputLayer):
            forget_calls(layer)
    return keras.models.clone_model(plain, clone_function=lambda layer: layer, call_function=call)


def _tower(network: keras.Model, name: str, converter: Any, size: Size, tower: str) -> keras.Model:
    """Return half of a network for images and text, up to the vectors that are compared."""
    if not hasattr(network, "get_vision_embeddings"):
        return towerless(network, tower)
    if tower == "text":
        tokens = keras.Input((None,), dtype="int32", name="token_ids")
        vectors = network.get_text_embeddings(tokens)
        return keras.Model({"token_ids": tokens}, vectors, name=f"{name}_text")
    image, x = image_input(size, network.vision_encoder.image_shape[:2])
    vectors = network.get_vision_embeddings(_scaling(name, converter)(x))
    return keras.Model(image, vectors, name=f"{name}_image")


def image_input(
    size: Size, wanted: tuple[int | None, ...]
) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    """Return an input for images of `size` (None: any), and the tensor resized if necessary."""
    any_size = None in wanted
    image = keras.Input((*(size or ((None, None) if any_size else wanted)), 3), name="image")
    if any_size or tuple(wanted) == image.shape[1:3]:
        return image, image
    return image, keras.layers.Resizing(*wanted, name="resize")(image)


def towerless(model: keras.Model, tower: str | None) -> keras.Model:
    if tower is not None:
        raise ValueError(
            f"{model.name} has no {tower} tower: expected the preset of a network for images and "
            "text such as CLIP or SigLIP. Leave out `tower`."
        )
    return model
