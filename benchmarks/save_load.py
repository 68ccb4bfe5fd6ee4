"""What a saved model keeps of its training, for every plan, BatchNorm mode and network.

    python benchmarks/save_load.py                    # all networks: an hour on one core
    python benchmarks/save_load.py glyph_vit ViT      # only these

Each plan trains one epoch per stage on four examples. The model is saved and loaded in two new
processes: with Keras alone, where training continues with `fit`, and with tlkeras, where it
continues with `fit` and the plan. A cell of the table has one word per mode (frozen, affine, train;
one word for networks without BatchNorm):

- exact: the same weights learn, with the optimizer of training, and frozen weights do not change;
- said: Keras cannot store this; the Run said so, and one call of `tlk.freeze` restores it;
- anything else is wrong. Exits with status 1 if there is any.
"""

import sys
import tempfile
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import networks

import tlkeras as tlk
from tlkeras.freezing.batchnorm import MODES, batchnorm_layers

PLANS = {
    "two_stage": lambda mode: tlk.recipes.two_stage(1, 1, batchnorm=mode),
    "progressive": lambda mode: tlk.recipes.progressive(1, 1, blocks=2, batchnorm=mode),
    "middle_only": lambda mode: tlk.recipes.middle_only(1, 1, batchnorm=mode),
    "full": lambda mode: tlk.recipes.full(1, batchnorm=mode),
    "rates by block": lambda mode: tlk.recipes.recipe_b(
        1, 1, blocks=2, batchnorm=mode, patience=None, monitor="loss"
    ),
}


def row(make) -> list[str]:
    """Return the cells of a network, one for each plan."""
    modes = MODES if batchnorm_layers(make()) else MODES[:1]
    with tempfile.TemporaryDirectory() as folder:
        for plan in PLANS:
            for mode in modes:
                path = Path(folder) / f"{plan} {mode}"
                networks.trained_and_saved(make, PLANS[plan](mode), path, eager=True)
        alone, with_plan = networks.reloaded(folder), networks.reloaded(folder, "plan")
    return [
        ", ".join(_word(alone[f"{p} {mode}"], with_plan[f"{p} {mode}"]) for mode in modes)
        for p in PLANS
    ]


def _word(alone: str, with_plan: str) -> str:
    return alone if alone == with_plan else f"WRONG ({alone}; with tlkeras {with_plan})"


def main(names: list[str]) -> bool:
    warnings.simplefilter("ignore")
    known = {**networks.BUNDLED, **networks.HUB, **networks.APPLICATIONS}
    print("| network |", " | ".join(PLANS), "|")
    print("|---" * (len(PLANS) + 1) + "|")
    right = True
    for name in names or known:
        cells = row(known[name])
        right &= {word for cell in cells for word in cell.split(", ")} <= {"exact", "said"}
        print(f"| {name} |", " | ".join(cells), "|", flush=True)
    return right


if __name__ == "__main__":
    sys.exit(not main(sys.argv[1:]))
