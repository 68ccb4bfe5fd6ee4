"""Writes a preset folder with its card: shared by the build scripts beside this file."""

import csv
import hashlib
import json
import os
import shutil
from pathlib import Path


def write_preset(parts: list, out: Path, work: Path, card: dict) -> None:
    """Writes the preset folder beside `out`, then puts it in its place; `card.md` stays.

    Args:
        parts: what KerasHub saves into a preset: the network, its image converter, a tokenizer.
        out: the preset's folder.
        work: where training left `log.csv`, a row an epoch that ends in seconds.
        card: what `card.json` shall say; seconds and the SHA-256 of every file are added.
    """
    new = work / "preset"
    shutil.rmtree(new, ignore_errors=True)
    for part in parts:
        part.save_to_preset(str(new))
    shutil.copy(work / "log.csv", new / "training.csv")
    with (new / "training.csv").open() as file:
        log = [[float(value) for value in row] for row in csv.reader(file)]
    files = sorted(path for path in new.rglob("*") if path.is_file())
    card |= {
        "training_loss": log[-1][1],
        "training_accuracy": log[-1][2],
        "seconds": round(sum(row[-1] for row in log)),
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
