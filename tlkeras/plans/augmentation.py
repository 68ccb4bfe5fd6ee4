"""Ready-made augmentation of photographs, for `Stage(augment=...)`."""

import keras

STRENGTHS = ("light", "strong")


def augmentation(strength: str = "light", seed: int = 0, mixing: bool = True) -> keras.Sequential:
    """Layers that change training images with pixels 0..255 at random, for `Stage(augment=...)`.

    Images are mirrored left to right, so this is not for writing.

    Args:
        strength: "light" mirrors, shifts and zooms images and changes brightness, contrast and
            saturation a little. "strong" does so more, and adds RandAugment and MixUp.
        seed: makes the draws reproducible.
        mixing: whether "strong" includes MixUp, which needs one-hot labels.

    Raises:
        ValueError: another strength.

    >>> stage = tlk.Stage("tune", tlk.policies.last_blocks(1), augment=tlk.augmentation("light"))
    >>> stage.augment.name
    'augment_light'
    """
    if strength not in STRENGTHS:
        raise ValueError(f"Expected a strength out of {STRENGTHS}, found {strength!r}.")
    shift, zoom, colour = (0.08, -0.15, 0.1) if strength == "light" else (0.15, -0.3, 0.2)
    pixels = {"value_range": (0, 255)}
    layers = [
        keras.layers.RandomFlip("horizontal", seed=seed),
        keras.layers.RandomTranslation(shift, shift, fill_mode="reflect", seed=seed + 1),
        keras.layers.RandomZoom((zoom, 0.0), fill_mode="reflect", seed=seed + 2),
        keras.layers.RandomBrightness(colour, seed=seed + 3, **pixels),
        keras.layers.RandomContrast(colour, seed=seed + 4, **pixels),
        keras.layers.RandomSaturation((0.5 - colour, 0.5 + colour), seed=seed + 5, **pixels),
    ]
    if strength == "strong":
        layers.append(keras.layers.RandAugment(num_ops=2, factor=0.3, seed=seed + 6, **pixels))
    if strength == "strong" and mixing:
        layers.append(keras.layers.MixUp(alpha=0.2, seed=seed + 7))
    layers.append(keras.layers.ReLU(max_value=255.0))  # contrast can leave 0..255
    return keras.Sequential(layers, name=f"augment_{strength}")
