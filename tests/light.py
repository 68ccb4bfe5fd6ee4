"""A network that tells light images from dark ones, untrained, and a run of it."""

from types import SimpleNamespace

import keras
import numpy as np

import tlkeras as tlk


def bright(classes=2, activation=None, name="bright"):
    """Says how bright an image is: its last class wins from the middle on."""
    image = keras.Input((8, 8, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(image))
    model = keras.Model(image, keras.layers.Dense(classes, activation, name=name)(x))
    kernel = np.zeros((3, classes))
    kernel[:, -1] = 20
    bias = np.zeros(classes)
    bias[-1] = -30  # 20 x 3 channels x brightness
    model.layers[-1].set_weights([kernel, bias])
    return model


def run_of(model, loss, tmp_path, classes, **task):
    model.compile("sgd", loss)
    run = tlk.Run(model, tlk.recipes.head_only(1))
    run.history = {"stage": ["head"], "epoch": [1], "loss": [0.5]}
    task = SimpleNamespace(classes=classes, image_size=(8, 8), name="photos", **task)
    return run.save(tmp_path / "run", task=task)
