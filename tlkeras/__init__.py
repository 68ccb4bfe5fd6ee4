"""Staged transfer learning for Keras 3: the small library of the tlkeras course.

    import tlkeras as tlk

    task = tlk.load_task("digits", labels_per_class=30)
    model = tlk.add_head(tlk.load_backbone("glyph_resnet"), classes=len(task.classes))
    run = tlk.fit_stages(model, tlk.recipes.two_stage(), task.train, task.validation)

Importing this package costs next to nothing: each name is loaded when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from tlkeras.utils import afterwards, quiet

__version__ = "0.2.0"

__all__ = [
    "FeatureCache",
    "Plan",
    "Run",
    "Stage",
    "accelerate",
    "add_head",
    "augmentation",
    "compare",
    "decision_guide",
    "diagnose",
    "evaluate",
    "export",
    "filtered",
    "find_blocks",
    "find_learning_rate",
    "fit_auto",
    "fit_stages",
    "flavors",
    "freeze",
    "heads",
    "interpret",
    "is_online",
    "list_tasks",
    "load_backbone",
    "load_classifier",
    "load_run",
    "load_task",
    "measure_shift",
    "optimizers",
    "plots",
    "policies",
    "predict",
    "probe",
    "recipes",
    "recommend",
    "relative_gradients",
    "results",
    "setting",
    "table",
    "to_groupnorm",
]
_MODULES = {
    "flavors": "flavors",
    "heads": "backbones.heads",
    "optimizers": "optimizers",
    "plots": "display.plots",
    "policies": "freezing.policies",
    "recipes": "plans.recipes",
}
_HOME = {  # the module that defines each of the other names
    "FeatureCache": "features.store",
    "Plan": "plans.plan",
    "Run": "runs.run",
    "Stage": "plans.plan",
    "accelerate": "devices.setup",
    "add_head": "backbones.heads",
    "augmentation": "plans.augmentation",
    "compare": "advice.comparing",
    "decision_guide": "advice.controls",
    "diagnose": "runs.diagnosing",
    "evaluate": "features.cached_evaluate",
    "export": "advice.exporting",
    "filtered": "advice.controls",
    "find_blocks": "blocks.find",
    "find_learning_rate": "training.rate_finder",
    "fit_auto": "advice.auto",
    "fit_stages": "training.fit",
    "freeze": "freezing.flags",
    "interpret": "advice.interpret",
    "is_online": "utils.profiles",
    "list_tasks": "tasks.load",
    "load_backbone": "backbones.load",
    "load_classifier": "backbones.load",
    "load_run": "runs.loading",
    "load_task": "tasks.load",
    "measure_shift": "advice.shift",
    "predict": "advice.predicting",
    "probe": "advice.probing",
    "recommend": "advice.recommending",
    "relative_gradients": "advice.gradients",
    "results": "display.results",
    "setting": "utils.profiles",
    "table": "utils.tables",
    "to_groupnorm": "freezing.batchnorm",
}

quiet.install()


def _register() -> None:
    """Register the optimizers, so that `keras.models.load_model` finds them without an import."""
    importlib.import_module("tlkeras.optimizers")


afterwards.after_import("keras", _register)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'tlkeras' has no attribute {name!r}; it has {__all__}")
    module = importlib.import_module(f"tlkeras.{_MODULES.get(name) or _HOME[name]}")
    return module if name in _MODULES else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if TYPE_CHECKING:
    from tlkeras import flavors, optimizers
    from tlkeras.advice.auto import fit_auto
    from tlkeras.advice.comparing import compare
    from tlkeras.advice.controls import decision_guide, filtered
    from tlkeras.advice.exporting import export
    from tlkeras.advice.gradients import relative_gradients
    from tlkeras.advice.interpret import interpret
    from tlkeras.advice.predicting import predict
    from tlkeras.advice.probing import probe
    from tlkeras.advice.recommending import recommend
    from tlkeras.advice.shift import measure_shift
    from tlkeras.backbones import heads
    from tlkeras.backbones.heads import add_head
    from tlkeras.backbones.load import load_backbone, load_classifier
    from tlkeras.blocks.find import find_blocks
    from tlkeras.devices.setup import accelerate
    from tlkeras.display import plots
    from tlkeras.display.results import results
    from tlkeras.features.cached_evaluate import evaluate
    from tlkeras.features.store import FeatureCache
    from tlkeras.freezing import policies
    from tlkeras.freezing.batchnorm import to_groupnorm
    from tlkeras.freezing.flags import freeze
    from tlkeras.plans import recipes
    from tlkeras.plans.augmentation import augmentation
    from tlkeras.plans.plan import Plan, Stage
    from tlkeras.runs.diagnosing import diagnose
    from tlkeras.runs.loading import load_run
    from tlkeras.runs.run import Run
    from tlkeras.tasks.load import list_tasks, load_task
    from tlkeras.training.fit import fit_stages
    from tlkeras.training.rate_finder import find_learning_rate
    from tlkeras.utils.profiles import is_online, setting
    from tlkeras.utils.tables import table
