"""Staged transfer learning for Keras 3: the small library of the tlkeras course.

    import tlkeras as tlk

    task = tlk.load_task("digits", labels_per_class=30)
    model = tlk.add_head(tlk.load_backbone("glyph_resnet"), classes=len(task.classes))
    run = tlk.fit_stages(model, tlk.recipes.two_stage(), task.train, task.validation)

Importing this costs next to nothing: a name is loaded when it is first used.
"""

import importlib
from typing import TYPE_CHECKING

from tlkeras import quiet

__version__ = "0.1.0"

__all__ = [
    "Plan",
    "Run",
    "Stage",
    "add_head",
    "find_blocks",
    "fit_stages",
    "freeze",
    "list_tasks",
    "load_backbone",
    "load_task",
    "plots",
    "policies",
    "recipes",
]
_MODULES = ("plots", "policies", "recipes")
_HOME = {  # the module each of the other names lives in
    "Plan": "plan",
    "Run": "run",
    "Stage": "plan",
    "add_head": "heads",
    "find_blocks": "blocks",
    "fit_stages": "stages",
    "freeze": "policies",
    "list_tasks": "tasks",
    "load_backbone": "backbones",
    "load_task": "tasks",
}

quiet.install()


def __getattr__(name: str):
    if name in _MODULES:
        return importlib.import_module(f"tlkeras.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'tlkeras' has no attribute {name!r}; it has {__all__}")
    return getattr(importlib.import_module(f"tlkeras.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if TYPE_CHECKING:
    from tlkeras import plots, policies, recipes
    from tlkeras.backbones import load_backbone
    from tlkeras.blocks import find_blocks
    from tlkeras.heads import add_head
    from tlkeras.plan import Plan, Stage
    from tlkeras.policies import freeze
    from tlkeras.run import Run
    from tlkeras.stages import fit_stages
    from tlkeras.tasks import list_tasks, load_task
