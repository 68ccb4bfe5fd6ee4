"""How training time grows with images, with blocks that learn, and with devices.

    python benchmarks/growth.py                # all; or names: images blocks devices

images: seconds of `fit_stages` for two epochs of the head on a frozen network, including tracing.
blocks: seconds of the second epoch with the head and 0 to 4 blocks learning. Both are measured with
and without the cache. devices: seconds of the second epoch on one and on two virtual CPU devices
with MirroredStrategy. Virtual devices share the cores of the machine, so two cannot be faster than
one; this shows the cost of splitting batches. Results go to benchmarks/results/growth.csv.
"""

import argparse
import os
import subprocess
import sys
import time

import numpy as np
from results import write

import tlkeras as tlk

import keras  # isort: skip  (after tlkeras, which keeps TensorFlow quiet)

CACHES = (("cached", "auto"), ("uncached", False))


class Epochs(keras.callbacks.Callback):
    """Records the seconds of every epoch."""

    async_safe = True

    def __init__(self):
        super().__init__()
        self.seconds = []

    def on_epoch_begin(self, epoch, logs=None):
        self.start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds.append(time.perf_counter() - self.start)


def noise(count: int, size: int) -> tuple:
    """Return random images, all different, so that the cache finds none of them twice."""
    x = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), "uint8")
    return x.astype("float32"), np.arange(count) % 10


def fit(plan, data, size: int, cache) -> tuple[float, float]:
    """Train a model; return the total seconds and those of the second epoch."""
    keras.utils.set_random_seed(0)
    model = tlk.add_head(tlk.load_backbone("glyph_resnet", image_size=size), 10)
    epochs, start = Epochs(), time.perf_counter()
    tlk.fit_stages(model, plan, data, cache=cache, callbacks=[epochs], seed=0, verbose=0)
    return time.perf_counter() - start, epochs.seconds[1]


def images() -> list[tuple]:
    plan, rows = tlk.recipes.head_only(2, 1e-3), []
    for count in (1000, 2000, 5000, 10_000, 20_000):
        data = noise(count, 32)
        for who, cache in CACHES:
            seconds, _ = fit(plan, data, 32, cache)
            rows.append(_shown("images", who, count, seconds))
    return rows


def blocks() -> list[tuple]:
    data, rows = noise(1000, 64), []
    for count in range(5):
        policy = tlk.policies.last_blocks(count) if count else tlk.policies.head_only()
        for who, cache in CACHES:
            _, seconds = fit([tlk.Stage("all", policy, 1e-5, 2)], data, 64, cache)
            rows.append(_shown("blocks", who, count, seconds))
    return rows


def devices() -> list[tuple]:
    """Measure each number of devices in its own process, since TensorFlow sets devices once."""
    # tlkeras sets this variable, and filters TensorFlow's messages only if it was not set before.
    chatty = "TF_CPP_MIN_LOG_LEVEL"
    environment, rows = {k: v for k, v in os.environ.items() if k != chatty}, []
    for count in (1, 2):
        command = [sys.executable, __file__, "--child", str(count)]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, check=True, text=True, env=environment
        )
        seconds = float(done.stdout.splitlines()[-1])
        rows.append(_shown("devices", "mirrored", count, seconds))
    return rows


def on_devices(count: int) -> float:
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    virtual = [tf.config.LogicalDeviceConfiguration()] * count
    tf.config.set_logical_device_configuration(cpu, virtual)
    found = tlk.accelerate(strategy="mirrored", quiet=True).count
    if found != count:
        raise RuntimeError(f"Expected {count} devices, found {found}.")
    return fit(tlk.recipes.full(2, 1e-5), noise(1024, 64), 64, cache="auto")[1]


def _shown(*row) -> tuple:
    print("{:8} {:9} {:6} {:8.3f} s".format(*row), flush=True)
    return row


BENCHMARKS = {f.__name__: f for f in (images, blocks, devices)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(BENCHMARKS), metavar="NAME")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(on_devices(options.child))
        return
    fit(tlk.recipes.head_only(2, 1e-3), noise(64, 32), 32, "auto")  # warm-up, not measured
    for name in options.names:
        write("growth", ("bench", "who", "count", "seconds"), BENCHMARKS[name](), key=name)


if __name__ == "__main__":
    main()
