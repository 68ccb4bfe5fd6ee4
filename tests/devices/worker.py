"""Trains small plans on one device, then on two: `worker.py FOLDER`.

Writes weights, losses and predictions to FOLDER/one.npz and mirrored.npz. Run by test_setup.py.
"""

import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from small import easy_data, small_backbone, with_head

import tlkeras as tlk


class Batches(keras.utils.PyDataset):
    """A global batch at a time, in the same order every epoch."""

    def __init__(self, x, y, size):
        super().__init__()
        self.x, self.y, self.size = x, y, size

    def __len__(self):
        return len(self.x) // self.size

    def __getitem__(self, i):
        part = slice(i * self.size, (i + 1) * self.size)
        return self.x[part], self.y[part]


def train(results, name, plan, data, validation_data, optimizer, **arguments):
    model = with_head(small_backbone())
    run = tlk.fit_stages(
        model, plan, data, validation_data, optimizer=optimizer, seed=0, verbose=0, **arguments
    )
    for number, weight in enumerate(model.get_weights()):
        results[f"{name} weight {number}"] = weight
    results[f"{name} loss"] = run.history["loss"]
    results[f"{name} val_loss"] = run.history["val_loss"]
    return model


def everything():
    """Two stages with a dataset, then arrays in an order of their own, with AdamW."""
    keras.utils.set_random_seed(0)
    x, y = easy_data()
    validation = easy_data(n=24, seed=1)
    val_batches = Batches(*validation, 8)
    head = tlk.Stage("head", tlk.policies.head_only(), learning_rate=0.1, epochs=2)
    top = tlk.Stage("top", tlk.policies.last_blocks(1), learning_rate=0.05, epochs=2)
    sgd = keras.optimizers.SGD(momentum=0.9)
    results = {}
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    model = train(results, "dataset", [head, top], dataset, val_batches, sgd)
    results["predicted"] = model.predict(val_batches, verbose=0)
    results["evaluated"] = model.evaluate(val_batches, verbose=0)
    train(results, "arrays", [top], (x, y), validation, None, batch_size=8)
    return results


cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
for name, strategy in (("one", None), ("mirrored", "mirrored")):
    tlk.accelerate(strategy=strategy)
    np.savez(Path(sys.argv[1]) / f"{name}.npz", **everything())
