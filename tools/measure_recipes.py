"""Accuracy of each recipe as `tlkeras fit` runs it: the figures in the docstrings of the recipes.

    python tools/measure_recipes.py            # about 10 minutes on 2 cores
    python tools/measure_recipes.py --table    # only shows the stored rows

Writes data/results/recipes.csv, one row per recipe, task and seed, as it goes. Stored rows are not
measured again. Columns: accuracy on the test split, which is not used for any choice, and seconds
of training.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from itertools import product

import numpy as np
from rows import Row, Rows

from tlkeras.cli.fit import SETTINGS
from tlkeras.utils.tables import text_table

ROWS = Rows("recipes", ("recipe", "task", "labels_per_class", "seed"), ("accuracy", "seconds"))
TASK, LABELS = "digits", 30
SEEDS = range(3)


def measure(recipe: str, task: str, labels: int, seed: int) -> dict[str, str]:
    """Run a recipe with the command line, in a separate process."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tlkeras", "fit", task, "--recipe", recipe, "--json"]
        command += ["--labels-per-class", str(labels), "--seed", str(seed), "--out", folder]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    found = json.loads(done.stdout)
    accuracy = round(found["test_accuracy"], 4)
    return {"accuracy": str(accuracy), "seconds": str(found["train_seconds"])}


def show(rows: list[Row]) -> None:
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
        for recipe, seed in product(SETTINGS, SEEDS):
            key = (recipe, TASK, LABELS, seed)
            ROWS.once(key, measure, *key)
    show(ROWS.stored)
