"""How deep to unfreeze an ImageNet network; recipes A, B and C as given and with scaled rates.

    python tools/measure_choosing.py              # about half an hour of one quiet core
    python tools/measure_choosing.py --part grid  # or only a part

Writes data/results/choosing.csv, which chapters 06 and 07 read, one row per run, as it goes. Stored
rows are not measured again, so it can be stopped at any time. Only a part is stored so far: from
the grid, the head and the last block (one draw of the latter on `lesions`); recipe A in three
draws, with scaled rates on `clothes` in two; B, and C at both scales, in one draw on `clothes`. The
seed draws the labelled images, the initial weights of the head and the order of training. All runs
use `efficientnet_lite0` at 64 pixels, on `clothes` (photographs) and `lesions` (synthetic).

Parts. `grid`: the head alone for 40 steps at 3e-3, then 40 more steps at 1e-3 with the blocks of a
depth (`head`: the head alone again). AdamW, cosine decay, batches of 16, no choice of epoch: depths
differ only in what learns. `recipe`: recipe A, B or C of section 1.7, with its own rates (scale 1),
and with rates multiplied by the number of images it is meant for divided by the number used here;
`plan` is the plan that was run.

Columns: `score` is balanced accuracy on 800 test images, `validation` the same on the 200
validation images that decide which epoch of a recipe is kept; `seconds` is the time of training;
`parameters` counts those that learn at the end; `drift` is how far the weights of the backbone
moved, in percent of their norm; `epochs` lists those of each stage.
"""

import argparse
import itertools
import time
from functools import cache

import tlkeras as tlk

import keras  # isort: skip  (after tlkeras, which keeps TensorFlow quiet)
import numpy as np
from rows import Rows
from trials import accuracy, drift, fit, new_head

ROWS = Rows(
    "choosing", ("part", "task", "what", "scale", "seed"),
    ("validation", "score", "seconds", "parameters", "drift", "epochs", "plan"),
)  # fmt: skip
TASKS = ("clothes", "lesions")
LABELS = 20  # per class
DEPTHS = {
    "head": tlk.policies.head_only(),
    "last 1": tlk.policies.last_blocks(1),
    "middle": tlk.policies.middle_blocks(),
    "all": tlk.policies.all_blocks(),
}
SEEDS = range(3)
BATCH, STEPS = 16, 40
HEAD_RATE, RATE = 3e-3, 1e-3
IMAGES = {"A": 10_000, "B": 50_000, "C": 100_000}  # images that a recipe is for; C's is our choice
Data = dict[str, tuple[np.ndarray, np.ndarray]]


@cache
def load(name: str, seed: int) -> Data:
    """Return a draw of training images, and always the same 200 validation and 800 test images."""
    task = tlk.load_task(name, labels_per_class=LABELS, seed=seed, image_size=64)
    found = {split: task.arrays(split) for split in ("train", "validation", "test")}
    for split, count in (("validation", 200), ("test", 800)):
        chosen = np.random.default_rng(0).permutation(len(found[split][1]))[:count]
        found[split] = tuple(part[chosen] for part in found[split])
    return found


def new_model(classes: int, dropout: float = 0.2) -> keras.Model:
    return tlk.add_head(tlk.load_backbone("efficientnet_lite0", image_size=64), classes, dropout)


@cache
def kept_model(classes: int, dropout: float) -> tuple[keras.Model, list[np.ndarray]]:
    """Return a model for many runs, and its initial weights."""
    model = new_model(classes, dropout)
    return model, model.get_weights()


class Learner:
    """The network with a new head, unfrozen to one depth; built and traced once for many runs."""

    def __init__(self, classes: int, depth: str):
        self.model = new_model(classes)
        blocks = tlk.find_blocks(self.model)
        self.parameters = tlk.freeze(self.model, DEPTHS[depth]).trainable_params
        learns = {block.name for block in DEPTHS[depth](blocks)}
        below = list(itertools.takewhile(lambda name: name not in learns, blocks.names))
        self.backbone, self.head = blocks.split(blocks[-2].name)
        self.bottom, self.top = blocks.split(below[-1]) if below else (None, self.model)
        for part in (self.head, self.top):
            if not getattr(part, "optimizer", None):
                loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
                part.compile(keras.optimizers.AdamW(), loss, jit_compile=False)
        self.start = self.model.get_weights()

    def train(self, x: np.ndarray, y: np.ndarray, seed: int) -> float:
        """Train the head, then everything that learns; return the seconds."""
        keras.utils.set_random_seed(seed)
        self.model.set_weights([*self.start[:-2], *new_head(self.start)])
        rng, clock = np.random.default_rng(seed), time.perf_counter()
        features = self.backbone.predict(x, 100, verbose=0)
        fit(self.head, features, y, HEAD_RATE, STEPS, BATCH, rng)
        inputs = x if self.bottom is None else self.bottom.predict(x, 100, verbose=0)
        fit(self.top, inputs, y, RATE, STEPS, BATCH, rng)
        return time.perf_counter() - clock


kept_learner = cache(Learner)


def recipe(name: str, scale: float = 1) -> tlk.Plan:
    """Return a recipe; A and B get enough epochs for their stopping rule."""
    augment = keras.layers.RandomFlip("horizontal", seed=0)
    if name == "A":
        return tlk.recipes.recipe_a(100, 30, scale)
    if name == "C":
        return tlk.recipes.recipe_c(5, scale, augment=augment)
    plan = tlk.recipes.recipe_b(100, 10, scale, blocks=2, augment=augment)
    return tlk.Plan([stage.replace(views=2) for stage in plan.stages])  # drawn once and cached


def measure(part: str, task: str, what: str, scale: float, seed: int) -> dict:
    data = load(task, seed)
    classes = int(data["test"][1].max()) + 1
    if part == "grid":
        learner = kept_learner(classes, what)
        model, start = learner.model, learner.start
        more = {"seconds": learner.train(*data["train"], seed), "parameters": learner.parameters}
    else:
        model, start = kept_model(classes, 0.5 if what == "C" else 0.2)
        keras.utils.set_random_seed(seed)
        model.set_weights([*start[:-2], *new_head(start)])
        more = follow(recipe(what, scale), model, data, seed, 0.05 if what == "C" else 0.004)
    return more | {
        "validation": accuracy(model, *data["validation"]), "score": accuracy(model, *data["test"]),
        "drift": drift(model, start),
    }  # fmt: skip


def follow(plan: tlk.Plan, model: keras.Model, data: Data, seed: int, weight_decay: float) -> dict:
    optimizer = keras.optimizers.AdamW(weight_decay=weight_decay)
    run = tlk.fit_stages(
        model, plan, data["train"], data["validation"], optimizer=optimizer, seed=seed, verbose=0
    )
    return {
        "seconds": run.seconds, "parameters": run.stages[-1].learns.trainable_params,
        "epochs": "+".join(str(stage.epochs) for stage in run.stages), "plan": str(plan),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=("grid", "recipe"), help="only this")
    parser.add_argument("--task", choices=TASKS, help="only this")
    parser.add_argument("--what", help="only this depth or recipe")
    parser.add_argument("--seed", type=int, choices=SEEDS, help="only this")
    only = parser.parse_args()
    tlk.accelerate()
    runs: list[tuple] = [
        ("recipe", task, name, scale, seed)
        for name, images in IMAGES.items() for task in TASKS for seed in SEEDS
        for scale in (1, images / 200)
    ]  # fmt: skip
    runs += [("grid", *rest[:2], 1, rest[2]) for rest in itertools.product(TASKS, DEPTHS, SEEDS)]
    wanted = (only.part, only.task, only.what, None, only.seed)
    for run in runs:
        if all(want is None or want == have for want, have in zip(wanted, run, strict=True)):
            ROWS.once(run, measure, *run)


if __name__ == "__main__":
    main()
