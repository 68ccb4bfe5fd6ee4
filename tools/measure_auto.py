"""`tlk.fit_auto` compared with every fixed recipe of the command line, on the same draws.

    python tools/measure_auto.py               # hours on 2 cores: 24 settings, 3 seeds, 9 recipes
    python tools/measure_auto.py --settings 12 --seeds 2    # a part; rows are kept
    python tools/measure_auto.py --table                    # only show what is stored

Writes data/results/auto.csv: one row per setting (task, network, pixels per side, labels per
class), seed and recipe. The seed draws the training images and the initial weights of the head.
Test images are scored once at the end of a run and not used for any choice. Validation images are
the first 200.

Columns: balanced accuracy on up to 800 test images; accuracy on validation data; CPU seconds,
including tracing but not loading; stages trained.
"""

import argparse
import time
from collections.abc import Iterator
from typing import Any

import tlkeras as tlk

import keras  # isort: skip  (after tlkeras, which keeps TensorFlow quiet)
import numpy as np
from rows import Rows
from sklearn.metrics import balanced_accuracy_score

from tlkeras.cli import fit_options
from tlkeras.cli.fit import SETTINGS
from tlkeras.utils.tables import Table

KEY = ("task", "network", "pixels", "labels_per_class")
ROWS = Rows("auto", (*KEY, "seed", "recipe"), ("balanced", "validation", "seconds", "stages"))
SMALL, VIT, PHOTOS = "glyph_resnet_small", "glyph_vit", "efficientnet_lite0"
GRID = [  # the first twelve cover a bit of everything
    ("digits", SMALL, 32, 10),
    ("clothes", SMALL, 32, 20),
    ("lesions", SMALL, 32, 20),
    ("glyphs/digits", SMALL, 32, 10),
    ("clothes", VIT, 32, 10),
    ("digits", VIT, 32, 5),
    ("lesions", PHOTOS, 64, 20),
    ("digits", SMALL, 32, 30),
    ("clothes", SMALL, 32, 100),
    ("clothes", PHOTOS, 64, 10),
    ("lesions", SMALL, 32, 100),
    ("digits", VIT, 32, 20),
    ("digits", SMALL, 32, 5),
    ("clothes", SMALL, 32, 5),
    ("glyphs/digits", SMALL, 32, 50),
    ("lesions", VIT, 32, 50),
    ("scenes", SMALL, 32, 50),
    ("scenes", PHOTOS, 64, 20),
    ("digits", PHOTOS, 64, 10),
    ("clothes", VIT, 32, 50),
    ("glyphs/digits", VIT, 32, 20),
    ("clothes", PHOTOS, 64, 50),
    ("lesions", PHOTOS, 64, 50),
    ("digits", PHOTOS, 64, 50),
]
VALIDATION, TEST, BUDGET = 200, 800, "1h"


def trained(recipe: str, model: keras.Model, train: Any, validation: Any, seed: int) -> tlk.Run:
    if recipe == "auto":
        return tlk.fit_auto(model, train, validation, budget=BUDGET, seed=seed, verbose=0)
    plan = getattr(tlk.recipes, recipe)(**SETTINGS[recipe])
    plan = fit_options.judged(plan, "val_accuracy", "class")
    return tlk.fit_stages(
        model, plan, train, validation, keep="best_of_run", seed=seed, verbose=0
    )  # fmt: skip


def measure(setting: tuple, seed: int, recipe: str) -> dict:
    name, network, pixels, labels = setting
    task = tlk.load_task(name, labels, seed, pixels)
    train, validation, test = (
        tuple(part[:count] for part in task.arrays(split))
        for split, count in (("train", None), ("validation", VALIDATION), ("test", TEST))
    )
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    model = tlk.add_head(tlk.load_backbone(network, pixels), len(task.classes))
    start = time.process_time()
    run = trained(recipe, model, train, validation, seed)
    seconds = time.process_time() - start
    said = [
        model.predict(x, batch_size=100, verbose=0).argmax(-1) for x in (test[0], validation[0])
    ]
    return {
        "balanced": float(balanced_accuracy_score(test[1], said[0])),
        "validation": float(np.mean(said[1] == validation[1])),
        "seconds": round(seconds, 1),
        "stages": "+".join(stage.name for stage in run.stages),
    }


def complete(recipes: list[str]) -> Iterator[dict[str, dict]]:
    """Yield the rows by recipe, for every setting and seed that has all recipes."""
    keys = dict.fromkeys(tuple(row[c] for c in (*KEY, "seed")) for row in ROWS.stored)
    for key in keys:
        rows = {r["recipe"]: r for r in ROWS.stored if tuple(r[c] for c in (*KEY, "seed")) == key}
        if set(recipes) <= set(rows):
            yield rows


def summary() -> Table:
    """Show how many points `auto` is behind the best recipe in hindsight, one line per setting."""
    recipes = ["auto", *SETTINGS]
    found: dict[tuple, list[tuple[float, ...]]] = {}
    for rows in complete(recipes):
        scores = {name: 100 * float(rows[name]["balanced"]) for name in recipes}
        cost = {name: float(rows[name]["seconds"]) for name in recipes}
        share = 100 * cost["auto"] / sum(cost[name] for name in SETTINGS)
        key = tuple(rows["auto"][c] for c in KEY)
        found.setdefault(key, []).append((*scores.values(), share))
    lines, behind = [], []
    for key, draws in found.items():
        means = np.mean(draws, axis=0)
        best = int(np.argmax(means[1:-1]))  # one recipe for all seeds of a setting
        behind.append((means[1 + best] - means[0], means[-1]))
        lines.append((
            " ".join(key), len(draws), means[0], list(SETTINGS)[best], means[1 + best],
            means[1 + best] - means[0], means[2], means[-1],
        ))  # fmt: skip
    gaps, shares = np.transpose(behind)
    note = (
        f"{len(lines)} settings: behind by {gaps.mean():.2f} points on average, {gaps.max():.1f} "
        f"at worst; {shares.mean():.0f} % of the cost of trying all."
    )
    header = ["setting", "seeds", "auto", "best recipe", "its score", "behind"]
    return tlk.table(lines, [*header, list(SETTINGS)[1], "cost, %"], note=note)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--settings", type=int, default=len(GRID), help="so many, from the first")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--recipes", nargs="+", default=["auto", *SETTINGS])
    parser.add_argument("--table", action="store_true", help="only show what is stored")
    options = parser.parse_args()
    for seed in range(0 if options.table else options.seeds):
        for setting in GRID[: options.settings]:
            for recipe in options.recipes:
                ROWS.once((*setting, seed, recipe), measure, setting, seed, recipe)
    print(summary())
