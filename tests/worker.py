"""Trains a small two-stage plan, alone or as one of several; run by test_accelerate.py.

    worker.py OUT DEVICES PLAN    DEVICES: one, mirrored, workers;  PLAN: short, long, slow, all

Writes the weights to OUT.npz, the number of this process to OUT.pid, and every epoch to stdout.
The slow plan is the long one with pauses, so that there is time to kill it; all is short and long.
"""

import dataclasses
import inspect
import os
import sys
import time
from pathlib import Path

import keras
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from conftest import easy_data, small_backbone, with_head  # also silences TensorFlow

from tlkeras.devices import accelerate
from tlkeras.plan import Plan, Stage
from tlkeras.policies import head_only, last_blocks
from tlkeras.stages import fit_stages


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


class Epochs(keras.callbacks.Callback):
    """Says when an epoch is over, and takes its time."""

    def on_epoch_end(self, epoch, logs=None):
        print("epoch", epoch + 1, {k: round(float(v), 4) for k, v in logs.items()}, flush=True)
        time.sleep(pause)


def from_one_file(x, y, path):
    """The examples as a dataset that reads them from one file, of which there is no half."""
    import tensorflow as tf

    with tf.io.TFRecordWriter(str(path)) as file:
        for image, label in zip(x, y, strict=True):
            file.write(np.append(image.ravel(), label).astype("float32").tobytes())

    def parse(record):
        values = tf.io.decode_raw(record, tf.float32)
        return tf.reshape(values[:-1], x.shape[1:]), tf.cast(values[-1], tf.int32)

    return tf.data.TFRecordDataset(str(path)).map(parse)


out, devices, length = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
pause = 0.3 if length == "slow" else 0
out.with_suffix(".pid").write_text(str(os.getpid()))
if devices == "mirrored":
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
accelerate(strategy="mirrored" if devices == "mirrored" else None)

keras.utils.set_random_seed(0)
x, y = easy_data()
validation = easy_data(n=24, seed=1)
head = Stage("head", head_only(), learning_rate=0.1, epochs=2)
top = Stage("top", last_blocks(1), learning_rate=0.05, epochs=2)
results = {}


def train(name, plan, data, validation_data, optimizer, **arguments):
    model = with_head(small_backbone())
    run = fit_stages(
        model, Plan(plan), data, validation_data, optimizer=optimizer, seed=0, verbose=0,
        callbacks=[Epochs()], **arguments,
    )  # fmt: skip
    for number, weight in enumerate(model.get_weights()):
        results[f"{name} weight {number}"] = weight
    results[f"{name} loss"] = run.history["loss"]
    results[f"{name} val_loss"] = run.history["val_loss"]
    return model


val_batches = Batches(*validation, 8)
sgd = keras.optimizers.SGD(momentum=0.9)
if length in ("short", "all"):
    dataset = from_one_file(x, y, out.with_suffix(".records")).batch(8)
    model = train("dataset", [head, top], dataset, val_batches, sgd)
    results["predicted"] = model.predict(val_batches, verbose=0)
    results["evaluated"] = model.evaluate(val_batches, verbose=0)
    train("arrays", [top], (x, y), validation, None, batch_size=8)  # shuffled, with AdamW
if length in ("long", "slow", "all"):
    plan, backup = [head, dataclasses.replace(top, epochs=8)], {}
    if "backup_dir" in inspect.signature(fit_stages).parameters:
        backup["backup_dir"] = out.parent / f"backup_{devices}"
    train("long", plan, (x, y), val_batches, sgd, batch_size=8, **backup)
np.savez(out.with_suffix(".npz"), **results)
print("finished", flush=True)
