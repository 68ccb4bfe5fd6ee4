"""The report of a run: what was trained and why, the results, the cost, how to reproduce it.

It is made from the contents of `run.json`. Names of classes, files and data are escaped.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from tlkeras.display import plots
from tlkeras.display.model_card import facts, limits
from tlkeras.display.page import (
    Section,
    arranged,
    bullets,
    described,
    page,
    picture,
    table,
    text,
)
from tlkeras.display.page import write as save
from tlkeras.display.report_scores import good, looked_at, of_images

WHY = {
    "head_only": "only the new head learns; the pretrained blocks stay as they are. This is fast, "
    "and a few images cannot damage them",
    "last_blocks": "the blocks nearest to the head, which are the most specific to the source "
    "task, adapt as well",
    "middle_blocks": "the middle blocks adapt, because the images look different while the task is "
    "similar",
    "all_blocks": "every block adapts, which needs the most images and time",
    "named": "only the named blocks learn",
}
CLASSES = 30  # longer lists of class names are cut


def write(
    path: Path,
    record: dict[str, Any],
    plan: Any,
    model: keras.Model,
    examples: Mapping[str, Sequence[Any]],
) -> Path:
    """Write the page and return its path; an error leaves no incomplete page there.

    Args:
        path: the file to write.
        record: the contents of `run.json`.
        plan: the Plan, or None.
        model: the model that was trained.
        examples: `Interpretation.examples`, or {}.
    """
    data, network = record["data"], record["network"]
    lead = [_verdict(record)]
    lead += [f"Note: {data['note']}."] if data["note"] else []
    lead += [f"Training stopped early: {record['stopped']}."] if record["stopped"] else []
    sections = [
        _trained(record, plan, model), _went(record), *good(record), *looked_at(examples),
        _cost(record), _again(record),
    ]  # fmt: skip
    return save(path, page(f"{data['name']}, trained from {network['name']}", lead, sections))


def _verdict(record: dict[str, Any]) -> str:
    """Return the most important result in one sentence."""
    found = record.get("interpretation")
    if not found:
        return "The model has not been measured on images that it was not trained on."
    name, value = next(iter(found["scores"].items()))
    on = f"{of_images(found)}, which it was not trained on"
    if isinstance(value, list | tuple):
        ends = f"; the 95 % interval is {value[1]:.1%} to {value[2]:.1%}"
        return f"{name.capitalize()} {value[0]:.1%} on {on}{ends}."
    return f"{name.capitalize()} {value:.4g} on {on}."


def _trained(record: dict[str, Any], plan: Any, model: keras.Model) -> Section:
    section = Section("What was trained, and why", [described(facts(record, CLASSES))])
    if plan is None:
        section.parts.append(text(record["plan_text"], "pre"))
        return section
    rows = [
        (s.name, str(s.policy), s.rate_text, s.epochs, s.batchnorm, getattr(s.policy, "kind", ""))
        for s in plan.stages
    ]
    header = ("stage", "what learns", "learning rate", "epochs (at most)", "BatchNorm")
    reasons = [f"{name}: {WHY[kind]}." for name, *_, kind in rows if kind in WHY]
    figure = plots.learning_rates(plan, model)
    figure.set_size_inches(5, 3)  # readable on a phone
    alt = "Learning rates of the blocks over the epochs of the plan: " + "; ".join(
        f"{name}, {what} at {rate} for {epochs} epochs" for name, what, rate, epochs, *_ in rows
    )
    section.parts += [
        table([row[:-1] for row in rows], header), bullets(reasons),
        picture(figure, alt, "The learning rate of every block; a frozen block has none."),
    ]  # fmt: skip
    if done := record["data"]["report"]:
        section.parts += [text("What was done to the files:"), bullets(done)]
    return section


def _went(record: dict[str, Any]) -> Section:
    history = {
        name: [float("nan") if value is None else value for value in column]
        for name, column in record["history"].items()
    }
    section = Section("How training went", [arranged(_curves(history), "beside")])
    stopped = any(_stopped(stage) for stage in record["stages"])
    rows = [
        (s["name"], s["learning_rate"], f"{s['epochs']} ({s['best_epoch']})", _metric(s),
         *([_stopped(s)] if stopped else []))
        for s in record["stages"]
    ]  # fmt: skip
    header = ("stage", "learning rate", "epochs (best)", "at the best epoch")
    section.parts.append(table(rows, (*header, *(["stopped"] if stopped else []))))
    section.parts += [text(said) for said in (record["worse"], record["unsaved"]) if said]
    if found := record.get("findings"):  # records from before 0.2 have none
        said = "{symptom}: {evidence}. Probable cause: {cause}. What to do: {fix}."
        section.parts += [text("What looks wrong:"), bullets([said.format(**one) for one in found])]
    return section


def _curves(history: dict[str, list]) -> list[str]:
    """Return a plot of the loss, and one of the first other metric."""
    pictures: list[str] = []
    measures = [name for name in history if not name.startswith("val_")]
    for name in [n for n in measures if n not in ("stage", "epoch", "learning_rate")]:
        ends = {n: history[n] for n in (name, f"val_{name}") if n in history}
        if len(pictures) == 2 or any(isinstance(v, list) for v in history[name]):
            continue
        said = ", ".join(f"{n} from {v[0]:.3f} to {v[-1]:.3f}" for n, v in ends.items())
        alt = f"Curves over {len(history['epoch'])} epochs: {said}"
        figure = plots.history({n: history[n] for n in ("stage", "epoch")} | ends)
        pictures.append(picture(figure, alt, f"{name}; bands mark the stages"))
    return pictures


def _stopped(stage: dict[str, Any]) -> str:
    return stage["stopped"] or stage["failed"]


def _learned(stage: dict[str, Any]) -> tuple[int, int]:
    """Return how many parameters a stage trained, and how many there are."""
    rows = stage["learns"]["rows"]
    return sum(row[5] for row in rows), sum(row[6] for row in rows)


def _metric(stage: dict[str, Any]) -> str:
    found = stage["metrics"]
    names = [name for name in found if name.startswith("val_")] or list(found)
    return ", ".join(
        f"{name} {found[name]:.4f}" for name in names if isinstance(found[name], float)
    )


def _cost(record: dict[str, Any]) -> Section:
    rows = [
        (s["name"], f"{s['seconds']:.1f}", f"{_learned(s)[0]:,} of {_learned(s)[1]:,}", s["cache"])
        for s in record["stages"]
    ]
    header = ("stage", "seconds", "parameters that learned", "outputs of the frozen part")
    total = f"{record['seconds']:.1f} s of training in total."
    return Section("What it cost", [text(total), table(rows, header)])


def _again(record: dict[str, Any]) -> Section:
    made = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    seed = record.get("seed")
    said = "not stated" if seed is None else str(seed)
    parts = [described([("seed", said), ("made with", made)])]
    if record.get("command"):
        parts.append(text(record["command"], "pre"))
    parts += [text("To use the model, in the folder of the run:"),
              text("tlkeras predict . photo.jpg\n\nimport tlkeras as tlk\n"
                   'tlk.predict(".", ["photo.jpg"])', "pre"),
              text("What to keep in mind:"), bullets(limits(record))]  # fmt: skip
    return Section("How to reproduce the run, and how to use the model", parts)
