"""What each recipe reaches, as `tlkeras fit` runs it: the figures in the recipes' docstrings.

    python tools/measure_recipes.py            # about 10 minutes on 2 cores
    python tools/measure_recipes.py --table    # only shows what is stored

Writes data/results/recipes.csv, a row a recipe, task and seed: accuracy on the test split, which
nothing is chosen by, and seconds of training.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from tlkeras.cli.fit import SETTINGS
from tlkeras.utils.tables import text_table

FILE = Path(__file__).resolve().parents[1] / "data" / "results" / "recipes.csv"
HEADER = ("recipe", "task", "labels_per_class", "seed", "accuracy", "seconds")
SEEDS = range(3)


def measure(recipe: str, seed: int, task: str = "digits", labels: int = 30) -> tuple:
    """A row: the command line in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tlkeras", "fit", task, "--recipe", recipe, "--json"]
        command += ["--labels-per-class", str(labels), "--seed", str(seed), "--out", folder]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    found = json.loads(done.stdout)
    return recipe, task, labels, seed, round(found["test_accuracy"], 4), found["train_seconds"]


def show(rows: list[dict]) -> None:
    found = []
    for recipe in dict.fromkeys(row["recipe"] for row in rows):
        mine = [row for row in rows if row["recipe"] == recipe]
        accuracies = [100 * float(row["accuracy"]) for row in mine]
        mean, spread = np.mean(accuracies), np.std(accuracies, ddof=1)
        seconds = np.median([float(row["seconds"]) for row in mine])
        found.append((recipe, f"{mean:.1f} ± {spread:.1f}", f"{seconds:.0f}"))
    print(text_table(found, ("recipe", "test accuracy, %", "seconds")))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--table", action="store_true", help="only show what is stored")
    if not parser.parse_args().table:
        with FILE.open("w", newline="") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(HEADER)
            for recipe in SETTINGS:
                for seed in SEEDS:
                    rows.writerow(measure(recipe, seed))
                    file.flush()
    with FILE.open(newline="") as file:
        show(list(csv.DictReader(file)))
