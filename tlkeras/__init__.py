"""Staged transfer learning for Keras 3: the small library of the tlkeras course.

    import tlkeras as tlk

    task = tlk.load_task("digits", labels_per_class=30)
    model = tlk.add_head(tlk.load_backbone("glyph_resnet"), classes=len(task.classes))
    run = tlk.fit_stages(model, tlk.recipes.two_stage(), task.train, task.validation)

Importing this costs next to nothing: a name is loaded when it is first used.
"""

import importlib
import sys
from typing import TYPE_CHECKING

from tlkeras import quiet

__version__ = "0.1.0"

__all__ = [
    "FeatureCache",
    "Plan",
    "Run",
    "Stage",
    "accelerate",
    "add_head",
    "evaluate",
    "find_blocks",
    "find_learning_rate",
    "fit_stages",
    "freeze",
    "is_online",
    "list_tasks",
    "load_backbone",
    "load_task",
    "optimizers",
    "plots",
    "policies",
    "probe",
    "recipes",
]
_MODULES = ("optimizers", "plots", "policies", "recipes")
_HOME = {  # the module each of the other names lives in
    "FeatureCache": "cache",
    "Plan": "plan",
    "Run": "run",
    "Stage": "plan",
    "accelerate": "devices",
    "add_head": "heads",
    "evaluate": "cached",
    "find_blocks": "blocks",
    "find_learning_rate": "rate_finder",
    "fit_stages": "stages",
    "freeze": "policies",
    "is_online": "profiles",
    "list_tasks": "tasks",
    "load_backbone": "backbones",
    "load_task": "tasks",
    "probe": "probing",
}

quiet.install()


def _register() -> None:
    """Makes the optimizers known to `keras.models.load_model`, which imports none by itself."""
    if "keras" in sys.modules:
        importlib.import_module("tlkeras.blockwise")


_register()


def __getattr__(name: str):
    if name in __all__:
        _register()
    if name in _MODULES:
        return importlib.import_module(f"tlkeras.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'tlkeras' has no attribute {name!r}; it has {__all__}")
    return getattr(importlib.import_module(f"tlkeras.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if TYPE_CHECKING:
    from tlkeras import optimizers, plots, policies, recipes
    from tlkeras.backbones import load_backbone
    from tlkeras.blocks import find_blocks
    from tlkeras.cache import FeatureCache
    from tlkeras.cached import evaluate
    from tlkeras.devices import accelerate
    from tlkeras.heads import add_head
    from tlkeras.plan import Plan, Stage
    from tlkeras.policies import freeze
    from tlkeras.probing import probe
    from tlkeras.profiles import is_online
    from tlkeras.rate_finder import find_learning_rate
    from tlkeras.run import Run
    from tlkeras.stages import fit_stages
    from tlkeras.tasks import list_tasks, load_task
