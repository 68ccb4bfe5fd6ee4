"""KerasCV's backbones, `keras_cv://NAME`.

This is the only module that uses KerasCV, which gets no more releases because its work moved to
KerasHub. So this file can be removed one day without other changes. The networks take pixels in
[0, 255] and scale them in a layer of their own.
"""

import difflib
from typing import Any

import keras

from tlkeras.backbones import fetching

PREFIX = "keras_cv://"
NO_IMAGES = ("videoswin", "center_pillar")  # they take videos, and points in space
# Blocks per stage, to build these networks without downloading a configuration.
RESNETS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}
DENSENETS = {
    "densenet121": (6, 12, 24, 16),
    "densenet169": (6, 12, 32, 32),
    "densenet201": (6, 12, 48, 32),
}


def load(source: str, trained: bool, profile: str | None) -> keras.Model:
    """Load a KerasCV backbone as a plain functional model, from pixels in [0, 255] to features.

    Args:
        source: `keras_cv://` and a KerasCV preset name. Names that end in a data set
            (`resnet50_v2_imagenet`) have weights; the others are only architectures.
        trained: False builds the network untrained; ResNets and DenseNets need no download then.
        profile: see `tlk.is_online`.

    Raises:
        ValueError: the name does not exist, or weights are requested for an architecture that has
            none.
        ConnectionError: it would have to be downloaded, and the download fails or is not allowed.
        ImportError: KerasCV is not installed.
    """
    import keras_cv

    name = source.removeprefix(PREFIX)
    family = _families(keras_cv).get(name)
    if family is None:
        raise ValueError(_unknown(name, list(_families(keras_cv))))
    if trained and name not in family.presets_with_weights:
        near = [other for other in family.presets_with_weights if other.startswith(name)]
        hint = f"take {' or '.join(PREFIX + one for one in near)}, or " if near else ""
        raise ValueError(f"{source} is an architecture without weights: {hint}pass weights=None.")
    network = None if trained else _untrained(family, name)
    if network is None:
        fetching.refuse_offline(source, profile)
        with fetching.downloading(source):
            network = family.from_preset(name, load_weights=trained, include_rescaling=True)
    return keras.Model(network.input, network.output, name=name)  # saved without KerasCV's class


def _untrained(family: Any, name: str) -> keras.Model | None:
    """Return the network with new weights, or None if its configuration is not known here."""
    name = name.removesuffix("_imagenet")
    kind = name.removesuffix("_v2")
    if kind in DENSENETS:
        return family(stackwise_num_repeats=DENSENETS[kind], include_rescaling=True)
    if kind not in RESNETS:
        return None
    return family(
        stackwise_filters=[64, 128, 256, 512],
        stackwise_blocks=RESNETS[kind],
        stackwise_strides=[1, 2, 2, 2],
        block_type="basic_block" if kind in ("resnet18", "resnet34") else "block",
        include_rescaling=True,
    )


def _families(keras_cv: Any) -> dict[str, Any]:
    """Map each preset name to its family: of the classes that have it, the one with most names."""
    kinds: list[Any] = [
        kind
        for kind in vars(keras_cv.models).values()
        if isinstance(kind, type) and issubclass(kind, keras_cv.models.Backbone)
    ]
    found: dict[str, Any] = {}
    for kind in sorted(kinds, key=lambda kind: len(kind.presets)):
        found |= dict.fromkeys(kind.presets, kind)
    return {name: kind for name, kind in found.items() if not name.startswith(NO_IMAGES)}


def _unknown(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    hint = f" Did you mean {' or '.join(PREFIX + one for one in near)}?" if near else ""
    return f"KerasCV has no image backbone {name!r}.{hint}"
