"""Do cached and uncached training end at the same weights? `python benchmarks/parity.py`

Every recipe trains the pretrained network on 300 handwritten digits, with and without the cache,
from the same weights and seed. Writes to benchmarks/results/parity.csv the largest difference of a
weight between the two, and the largest change of a weight in training.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from results import write

import tlkeras as tlk

recipes = tlk.recipes
PLANS = {
    "head_only": recipes.head_only(3, 1e-2),
    "two_stage": recipes.two_stage(2, 2, 1e-2, 3e-4),
    "progressive": recipes.progressive(2, 1, 1e-2, 3e-4, blocks=3),
    "middle_only": recipes.middle_only(2, 2, 1e-2, 3e-4),
    "affine": recipes.two_stage(2, 2, 1e-2, 3e-4, blocks=2, batchnorm="affine"),
    "recipe_a": recipes.recipe_a(2, 2, scale=10),
    "recipe_b": recipes.recipe_b(2, 2, scale=10),
}


def trained(plan, cache):
    keras.utils.set_random_seed(0)  # the shuffling of the task also depends on it
    task = tlk.load_task("digits", labels_per_class=30)
    model = tlk.add_head(tlk.load_backbone("glyph_resnet"), len(task.classes))
    before = model.get_weights()
    run = tlk.fit_stages(model, plan, task.train, task.validation, cache=cache, seed=0, verbose=0)
    return before, model.get_weights(), [stage.cache for stage in run.stages]


def largest(some, others):
    return max(float(np.abs(a - b).max()) for a, b in zip(some, others, strict=True))


def main():
    rows = []
    for name, plan in PLANS.items():
        before, cached, notes = trained(plan, "auto")
        _, plain, _ = trained(plan, False)
        used = sum(note.startswith("after") for note in notes)
        distances = largest(cached, plain), largest(before, plain)
        rows.append(("parity", name, used, len(notes), *distances))
        print(
            "{1:12} cached stages {2} of {3}, difference {4:.1e}, moved {5:.1e}".format(*rows[-1])
        )
    header = ("bench", "recipe", "cached_stages", "stages", "largest_difference", "moved")
    write("parity", header, rows, key="parity")


if __name__ == "__main__":
    main()
