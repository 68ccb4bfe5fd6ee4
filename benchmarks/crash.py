"""Kills training at random moments, runs it again, and compares it with an uninterrupted run.

    python benchmarks/crash.py             # 100 runs, every fourth killed twice; about 40 minutes
    python benchmarks/crash.py --runs 4

A separate process trains three stages of 8 epochs with `backup_dir`, the first two on cached
outputs, the last without. It gets SIGKILL at a moment drawn uniformly between the start of its
first epoch and the end of an uninterrupted run; then the same command runs again. The results of a
run are the largest difference of a weight from the uninterrupted run, and the number of epochs that
were started again, including one that was in progress. Exits with status 1 if a weight differs by
more than 1e-6 or a kill costs more than one epoch. Results go to benchmarks/results/crash.csv.

One process trains at a time. Finished runs are kept in build/crash until all are done, so the same
command continues from there.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from results import write

KEPT = Path(__file__).resolve().parents[1] / "build" / "crash"
EPOCHS, TOLERANCE = 8, 1e-6
HEADER = ("what", "run", "kills", "moments", "largest_difference", "epochs_again", "most_a_kill")


def child(folder: Path) -> None:
    """Train or resume; write a line to log-N.txt when an epoch begins, and weights at the end."""
    import tlkeras as tlk

    import keras  # isort: skip  (after tlkeras, which keeps TensorFlow quiet)

    number = len(list(folder.glob("log-*.txt")))
    log = open(folder / f"log-{number}.txt", "a", buffering=1)  # noqa: SIM115

    class Log(keras.callbacks.Callback):
        async_safe = True

        def on_epoch_begin(self, epoch, logs=None):
            learning = len(self.model.trainable_variables)  # grows from stage to stage
            log.write(f"{learning} {epoch} {time.monotonic()}\n")

    keras.utils.set_random_seed(0)
    stages = [("head", tlk.policies.head_only(), 1e-3), ("last", tlk.policies.last_blocks(1), 3e-4)]
    stages.append(("all", tlk.policies.all_blocks(), 1e-4))
    plan = [tlk.Stage(name, policy, rate, EPOCHS) for name, policy, rate in stages]
    model = network()
    tlk.fit_stages(
        model, plan, images(288), images(96, seed=1), backup_dir=folder / "backup",
        callbacks=[Log()], seed=0, verbose=0,
    )  # fmt: skip
    log.write(f"end 0 {time.monotonic()}\n")
    np.savez(folder / "weights.npz", **{str(i): w for i, w in enumerate(model.get_weights())})


def network():
    """Return a small convolutional stack, and a head about as slow on cached outputs as a block."""
    from keras import Input, Model, layers

    x = image = Input((64, 64, 3))
    for i, width in enumerate((8, 16, 64)):
        x = layers.Conv2D(width, 3, 2, "same", name=f"stack{i}_conv")(x)
        x = layers.BatchNormalization(name=f"stack{i}_bn")(x)
        x = layers.ReLU(name=f"stack{i}_relu")(x)
    backbone = Model(image, x, name="backbone")
    image = Input((64, 64, 3))
    x = layers.Conv2D(128, 3, padding="same", activation="relu")(backbone(image))
    return Model(image, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))


def images(count: int, seed: int = 0) -> tuple:
    """Return images of noise whose mean brightness depends on the class."""
    labels = np.arange(count) % 3
    x = np.random.default_rng(seed).normal(0, 1, (count, 64, 64, 3))
    return (x + 0.1 * (labels - 1)[:, None, None, None]).astype("float32"), labels


def start(folder: Path) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, __file__, "--child", folder], stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"Training ended with status {process.returncode}:\n{errors}")


def lines(folder: Path, number: int) -> list[list[str]]:
    """Return the log of process `number`: (weights that learn, epoch, time) for each epoch."""
    log = folder / f"log-{number}.txt"
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


def begun(folder: Path, number: int) -> list[tuple]:
    return [(learning, epoch) for learning, epoch, _ in lines(folder, number) if learning != "end"]


def weights(folder: Path) -> list[np.ndarray]:
    with np.load(folder / "weights.npz") as stored:
        return [stored[name] for name in stored.files]


def difference(one: list, other: list) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(one, other, strict=True))


def uninterrupted(folder: Path) -> float:
    """Run without a kill; return the seconds from the start of the first epoch to the end."""
    if not (folder / "weights.npz").exists():
        shutil.rmtree(folder, ignore_errors=True)
        finish(start(folder))
    log = lines(folder, 0)
    return float(log[-1][2]) - float(log[0][2])


def killed(folder: Path, moments: list[float], seconds: float) -> list[float]:
    """Train to the end with kills at these moments, as shares of the remaining `seconds`.

    Returns the moments at which a process was still running and was killed.
    """
    hit = []
    for number, moment in enumerate(moments):
        process = start(folder)
        while not lines(folder, number) and process.poll() is None:
            time.sleep(0.01)
        pause = moment * seconds
        time.sleep(pause)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            hit.append(moment)
        _, errors = process.communicate()
        if process.returncode not in (0, -signal.SIGKILL):
            raise RuntimeError(f"Training ended with status {process.returncode}:\n{errors}")
        seconds -= pause
    finish(start(folder))
    return hit


def row(number: int, moments: list, seconds: float, expected: list) -> tuple:
    """Return the result of one run, from an earlier call if it was already done."""
    folder, done = KEPT / str(number), KEPT / f"{number}.json"
    if done.exists():
        return tuple(json.loads(done.read_text("utf-8")))
    shutil.rmtree(folder, ignore_errors=True)
    hit = killed(folder, moments, seconds)
    epochs = [begun(folder, process) for process in range(len(moments) + 1)]
    again = [len({*one} & {*other}) for one, other in zip(epochs, epochs[1:], strict=False)]
    missed = 3 * EPOCHS - len({epoch for part in epochs for epoch in part})
    if missed:
        raise RuntimeError(f"Run {number} ended without {missed} of its epochs.")
    found = difference(expected, weights(folder))
    where = " ".join(f"{moment:.3f}" for moment in hit)
    print(f"run {number:2}  killed at {where:12} difference {found:.1e}, "
          f"{sum(again)} epoch(s) again", flush=True)  # fmt: skip
    result = ("killed", number, len(hit), where, found, sum(again), max(again, default=0))
    done.write_text(json.dumps(result), encoding="utf-8")
    shutil.rmtree(folder)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child)
        return
    rng = np.random.default_rng(options.seed)
    moments = [rng.uniform(size=1 + (i % 4 == 3)).tolist() for i in range(options.runs)]
    KEPT.mkdir(parents=True, exist_ok=True)
    whole = [KEPT / "whole-0", KEPT / "whole-1"]
    seconds = min([uninterrupted(folder) for folder in whole])
    expected = weights(whole[0])
    noise = difference(expected, weights(whole[1]))
    print(f"uninterrupted: {seconds:.1f} s; a second time: difference {noise:.1e}", flush=True)
    rows = [row(i, moments[i], seconds, expected) for i in range(options.runs)]
    write("crash", HEADER, rows, key="killed")
    write("crash", HEADER, [("uninterrupted", 0, 0, "", noise, 0, 0)], key="uninterrupted")
    shutil.rmtree(KEPT)

    kills = sum(found[2] for found in rows)
    largest, most = (max(found[i] for found in rows) for i in (4, 6))
    mean = sum(found[5] for found in rows) / max(1, kills)
    print(f"{len(rows)} runs, {kills} kills: largest difference {largest:.1e}")
    print(f"epochs begun again for a kill: {mean:.2f} on average, {most} at most")
    sys.exit(most > 1 or largest > TOLERANCE)


if __name__ == "__main__":
    main()
