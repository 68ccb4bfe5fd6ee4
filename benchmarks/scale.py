"""The speedup from a second process, measured, and from more processes, simulated.

    python benchmarks/scale.py                 # needs jax

measured: seconds per step of `fit_stages` (all blocks of glyph_resnet at 64 px learn, 64 images in
the global batch, no cache) with Keras on JAX, in one process and in two, each with its own core.
Rounds alternate. The figures are the median over the steps of the last epoch, and the CPU time in
one process, which depends less on other work on the machine. simulated: compute / n plus a ring
all-reduce of 2 (n - 1) / n * bytes of the gradients / bandwidth, where compute is the time measured
with one process. Latency and reading data are left out. Results go to benchmarks/results/scale.csv.
"""

import argparse
import os
import socket
import subprocess
import sys
import time
from statistics import median

import numpy as np
from results import write

import tlkeras as tlk

import keras  # isort: skip  (after tlkeras, which keeps TensorFlow quiet)

BATCH, STEPS, SIZE = 64, 8, 64
BANDWIDTHS = {"1 Gbit/s": 1e9 / 8, "10 Gbit/s": 10e9 / 8, "100 Gbit/s": 100e9 / 8}
HEADER = ("bench", "network", "processes", "bandwidth", "round", "seconds a step", "of CPU")


def all_reduce(n: int, size: float, bandwidth: float) -> float:
    """Return the seconds in which n processes sum `size` bytes in a ring.

    Each process sends 2 (n - 1) / n of the bytes.
    """
    return 2 * (n - 1) / n * size / bandwidth


def step(n: int, compute: float, size: float, bandwidth: float) -> float:
    """Return the seconds of a step whose batch is divided among n processes."""
    return compute / n + all_reduce(n, size, bandwidth)


class Steps(keras.callbacks.Callback):
    """Records the seconds and CPU seconds of every step of the epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        self.seconds, self.cpu = [], []

    def on_train_batch_begin(self, batch, logs=None):
        self.start = time.perf_counter(), time.process_time()

    def on_train_batch_end(self, batch, logs=None):
        self.seconds.append(time.perf_counter() - self.start[0])
        self.cpu.append(time.process_time() - self.start[1])


def child() -> None:
    """Train as one of the processes; the first prints seconds per step and bytes of gradients."""
    process = int(os.environ["KERAS_DISTRIBUTION_PROCESS_ID"])
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[process]})
    tlk.accelerate(quiet=True)
    keras.utils.set_random_seed(0)
    model = tlk.add_head(tlk.load_backbone("glyph_resnet", image_size=SIZE), 10)
    x = np.random.default_rng(0).integers(0, 256, (BATCH * STEPS, SIZE, SIZE, 3), "uint8")
    steps, y = Steps(), np.arange(BATCH * STEPS) % 10
    tlk.fit_stages(
        model, tlk.recipes.full(3, 1e-5), (x.astype("float32"), y), batch_size=BATCH, cache=False,
        callbacks=[steps], seed=0, verbose=0,
    )  # fmt: skip
    size = sum(4 * int(np.prod(weight.shape)) for weight in model.trainable_weights)
    if process == 0:
        print(median(steps.seconds), median(steps.cpu), size)


def measure(count: int) -> tuple[float, float, int]:
    """Return seconds and CPU seconds per step with `count` processes, and bytes of gradients."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {
        "KERAS_BACKEND": "jax",
        "JAX_PLATFORMS": "cpu",
        "KERAS_DISTRIBUTION_JOB_ADDRESSES": f"127.0.0.1:{port}",
        "KERAS_DISTRIBUTION_NUM_PROCESSES": str(count),
    }
    started = [
        subprocess.Popen(
            [sys.executable, __file__, "--child"],
            env=env | {"KERAS_DISTRIBUTION_PROCESS_ID": str(process)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for process in range(count)
    ]  # fmt: skip
    said = [process.communicate() for process in started]
    for process, (_, errors) in zip(started, said, strict=True):
        if process.returncode:
            raise RuntimeError(f"A process ended with status {process.returncode}:\n{errors}")
    seconds, cpu, size = said[0][0].splitlines()[-1].split()
    return float(seconds), float(cpu), int(size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child()
        return
    rows = []
    for number in range(options.rounds):
        for count in (1, 2):
            seconds, cpu, size = measure(count)
            rows.append(("measured", "glyph_resnet", count, "loopback", number, seconds, cpu))
            print(f"measured: {count} process(es), {seconds:.3f} s a step, {cpu:.3f} s of CPU")
    write("scale", HEADER, rows, key="measured")
    compute = median(row[5] for row in rows if row[2] == 1)
    simulated = [
        ("simulated", "glyph_resnet", n, name, "", step(n, compute, size, bandwidth), "")
        for name, bandwidth in BANDWIDTHS.items()
        for n in (1, 2, 4, 8, 16)
    ]
    write("scale", HEADER, simulated, key="simulated")
    print(f"gradients: {size / 1e6:.2f} MB")
    for _, _, n, name, _, seconds, _ in simulated:
        print(f"simulated: {n:2} processes, {name:10}  {seconds:.3f} s  {compute / seconds:.1f} x")


if __name__ == "__main__":
    main()
