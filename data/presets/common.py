"""Code shared by the build scripts in this folder: training with checkpoints, writing a preset."""

import csv
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import keras


def train(
    model: keras.Model,
    epochs: int,
    data: Callable[[int], keras.utils.PyDataset],
    work: Path,
    accuracy: str = "accuracy",
) -> None:
    """Train a compiled model with a checkpoint per epoch; continue from the last one in `work`.

    Args:
        model: the model with its initial weights, which a checkpoint replaces.
        epochs: total number of epochs; each has the steps of its data.
        data: a function from the epoch, counted from 0, to its training data.
        work: folder for `checkpoint.weights.h5` and `log.csv` (epoch, loss, accuracy, seconds).
        accuracy: the metric that is logged.
    """
    work.mkdir(parents=True, exist_ok=True)
    checkpoint, log = work / "checkpoint.weights.h5", work / "log.csv"
    if checkpoint.exists():
        model.optimizer.build(model.trainable_variables)
        model.load_weights(checkpoint)
    for epoch in range(int(model.optimizer.iterations) // len(data(0)), epochs):
        start = time.perf_counter()
        history = model.fit(data(epoch), shuffle=False, verbose=0).history
        seconds = time.perf_counter() - start
        row = [epoch + 1, history["loss"][0], history[accuracy][0], seconds]
        model.save_weights(work / "next.weights.h5")
        os.replace(work / "next.weights.h5", checkpoint)
        with log.open("a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(f"{value:.5g}" for value in row)
        print(
            "epoch {} of {}: loss {:.3f}, accuracy {:.3f}, {:.0f} s".format(
                epoch + 1, epochs, *row[1:]
            ),
            flush=True,
        )


def write_preset(parts: list, out: Path, work: Path, card: dict) -> None:
    """Write the preset folder of a network that was trained here; `card.md` is kept.

    Args:
        parts: objects that KerasHub saves into a preset: network, image converter, tokenizer.
        out: the preset's folder.
        work: folder with the `log.csv` of the training, one row per epoch, seconds last.
        card: content of `card.json`; the results at the end of training are added.
    """
    new = work / "preset"
    shutil.rmtree(new, ignore_errors=True)
    for part in parts:
        part.save_to_preset(str(new))
    shutil.copy(work / "log.csv", new / "training.csv")
    with (new / "training.csv").open() as file:
        log = [[float(value) for value in row] for row in csv.reader(file)]
    card |= {
        "training_loss": log[-1][1],
        "training_accuracy": log[-1][2],
        "seconds": round(sum(row[-1] for row in log)),
    }
    publish(new, out, card)


def publish(new: Path, out: Path, card: dict) -> None:
    """Move the files in `new` to `out`, and list the SHA-256 of each in `card.json`."""
    files = sorted(path for path in new.rglob("*") if path.is_file())
    card |= {
        "files": {
            path.relative_to(new).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in files
        },
    }
    (new / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    for path in (*files, new / "card.json"):
        target = out / path.relative_to(new)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)
    print(json.dumps(card, indent=2))
