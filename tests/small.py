"""Small networks and data that every test may use."""

import keras
import numpy as np
from PIL import Image


def small_backbone(filters=(4, 6, 8), trained=True):
    """A ResNet-like stack with BatchNorm after every convolution; statistics away from 0 and 1."""
    image = keras.Input((16, 16, 3))
    x = image
    for i, width in enumerate(filters):
        x = keras.layers.Conv2D(width, 3, 2, "same", name=f"stack{i}_conv")(x)
        x = keras.layers.BatchNormalization(name=f"stack{i}_bn")(x)
        x = keras.layers.ReLU(name=f"stack{i}_relu")(x)
    backbone = keras.Model(image, x, name="backbone")
    rng = np.random.default_rng(0)
    for layer in backbone.layers if trained else ():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.moving_mean.assign(rng.normal(0, 0.1, layer.moving_mean.shape))
            layer.moving_variance.assign(rng.uniform(0.5, 1.5, layer.moving_variance.shape))
    return backbone


def with_head(backbone, classes=3, nested=True):
    """The backbone and a linear head; nested as one layer, or flat in one graph."""
    image = backbone.input if not nested else keras.Input(backbone.input.shape[1:])
    x = backbone(image) if nested else backbone.output
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, keras.layers.Dense(classes, name="logits")(x))


def easy_data(n=48, classes=3, seed=0):
    """Images whose mean brightness tells the class; standardised, as `small_backbone` likes."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    x = rng.normal(0, 1, (n, 16, 16, 3)) + (y - 1)[:, None, None, None]
    return x.astype("float32"), y


def photos(folder, side=16):
    """Bright and dark images, in a format whose bytes (and so splits) no library changes."""
    rng = np.random.default_rng(0)
    for name, level in (("bright", 200), ("dark", 30)):
        (folder / name).mkdir(parents=True)
        for number in range(12):
            pixels = rng.integers(level, level + 40, (side, side, 3), dtype="uint8")
            Image.fromarray(pixels).save(folder / name / f"{number}.bmp")
    return folder
