"""Diagnose training runs: symptoms, with their evidence, probable cause and fix."""

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from tlkeras.freezing.batchnorm import batchnorm_layers
from tlkeras.runs import symptoms
from tlkeras.runs.symptoms import Curves, Finding
from tlkeras.utils.tables import html_table, text_table

LOOKED_AT = 128  # training images that are predicted in both modes of BatchNorm
BATCH, LEAST = 8, 30
DRIFT = 6.0  # percent; in chapter 06, up to 5 % cost at most 10 points on the old task, 7.5 % ~20


class Findings(tuple[Finding, ...]):
    """What `tlk.diagnose` found; shown as a table in a notebook.

    Findings that may explain the others come first. `findings[0].apply(plan)` returns a plan with
    the first one fixed.
    """

    _header = ("symptom", "evidence", "probable cause", "what to do")

    def _rows(self) -> list[tuple[str, str]]:
        """Return one row per part of a finding, with an empty row between two findings."""
        rows = []
        for f in self:
            said = (f.symptom, f.evidence, f.cause, f.fix)
            rows += [("", ""), *zip(self._header, said, strict=True)]
        return rows[1:]

    def __repr__(self) -> str:
        return text_table(self._rows(), ("", "")) if self else "Nothing found."

    def _repr_html_(self) -> str:
        return html_table(self._rows(), ("", "")) if self else "<p>Nothing found.</p>"


def diagnose(
    run: Any,
    train: tuple[Any, Any] | None = None,
    validation: tuple[Any, Any] | None = None,
    *,
    before: keras.Model | None = None,
) -> Findings:
    """Check a run for the usual problems of transfer learning.

    The curves alone show a loss that became NaN, a learning rate that is too high for unfrozen
    layers, overfitting, a head that has reached its limit, and training that ended too early. Data
    are needed to find BatchNorm statistics that do not fit, labels that do not match their images,
    a class that is never predicted, validation images that were trained on, and a validation set
    that is too small. With the original backbone, the check also measures how far its weights have
    moved. The thresholds are rules of thumb: a finding is a suspicion with its evidence, and an
    empty result is no guarantee.

    Args:
        run: a Run of `tlk.fit_stages`.
        train, validation: (images, class numbers) as arrays, as `task.arrays` returns them.
        before: the backbone as it was loaded.

    Raises:
        ValueError: if labels are not class numbers, if the backbone is not in the model, or if the
            run was loaded without its plan.

    Source: course section 1.9.

    >>> model = tlk.add_head(tlk.load_backbone("glyph_resnet_small", image_size=32), classes=3)
    >>> y = np.arange(48) % 3  # brighter images in the higher classes
    >>> x = 80 * y[:, None, None, None] + np.random.uniform(0, 80, (48, 32, 32, 3))
    >>> plan = tlk.recipes.two_stage(10, 3, head_lr=1e-2, tune_lr=10.0)
    >>> run = tlk.fit_stages(model, plan, (x, y), (x, y), verbose=0, seed=0)
    >>> found = tlk.diagnose(run)
    >>> found[0].symptom
    'accuracy dropped when layers were unfrozen'
    >>> found[0].apply(plan).stages[1].learning_rate
    1.0
    """
    stages = symptoms.curves(run)
    found: list[Finding | None] = []
    if train is not None:
        found.append(_statistics(run.model, *_arrays(train)))
    if validation is not None:
        found += _judged(run.model, *_arrays(validation), stages)
    for number, stage in enumerate(stages):
        found += [rule(stage, stages[:number]) for rule in symptoms.RULES]
    if stages:
        found.append(symptoms.head_at_its_limit(stages[-1], stages[:-1]))
    if train is not None and validation is not None:
        found.append(_leaked(train[0], validation[0]))
    if before is not None:
        found.append(_moved(run.model, before))
    return Findings(one for one in found if one is not None)


def _arrays(data: tuple[Any, Any]) -> tuple[Any, np.ndarray]:
    x, labels = data
    labels = np.asarray(labels).reshape(-1)
    if not np.issubdtype(labels.dtype, np.integer) or len(labels) != len(x):
        raise ValueError(
            f"Expected one class number for each of {len(x)} images; found {labels.shape} of "
            f"{labels.dtype}. `task.arrays('validation')` gives what is needed."
        )
    return x, labels


def _named(scores: Any) -> np.ndarray:
    """Return the class with the highest score (logit or probability)."""
    return np.argmax(keras.ops.convert_to_numpy(scores), axis=-1)


def _statistics(model: keras.Model, x: Any, labels: np.ndarray) -> Finding | None:
    """Find BatchNorm problems: right with the statistics of a batch, wrong with the stored ones.

    Course section 1.9, symptom 3. Dropout, which is only active in training mode, can hide this
    symptom but not cause it.
    """
    if not batchnorm_layers(model) or model.output_shape[-1] < 2:
        return None
    x, labels = x[:LOOKED_AT], labels[:LOOKED_AT]
    state = [keras.ops.convert_to_numpy(v) for v in model.variables]  # including dropout seeds
    stored = np.mean(_named(model.predict(x, verbose=0)) == labels)
    try:
        parts = [model(x[i : i + BATCH], training=True) for i in range(0, len(x), BATCH)]
    finally:
        for variable, value in zip(model.variables, state, strict=True):
            variable.assign(value)
    batch = np.mean(np.concatenate([_named(part) for part in parts]) == labels)
    if batch - stored < 0.1:
        return None
    return Finding(
        "the model is worse in use than in training",
        f"the same {len(x)} training images: {batch:.2f} right with each batch's own statistics, "
        f"{stored:.2f} with the stored ones",
        "BatchNorm has averaged its statistics over batches that are too small, or too few",
        'batchnorm="frozen" where blocks are pretrained; or larger batches; or GroupNorm',
        change=lambda plan: type(plan)([s.replace(batchnorm="frozen") for s in plan.stages]),
    )


def _judged(
    model: keras.Model, x: Any, labels: np.ndarray, stages: list[Curves]
) -> Iterable[Finding | None]:
    classes = model.output_shape[-1]
    if classes < 2:
        return
    named = _named(model.predict(x, verbose=0))
    right = float(np.mean(named == labels))
    counts = np.bincount(labels, minlength=classes)
    never = [k for k in np.flatnonzero(counts >= 5) if k not in named]
    trained = stages[-1].metric[-1] if stages and len(stages[-1].metric) else 0.0
    chance = 1 / classes
    by_chance = chance + 1.96 * np.sqrt(chance * (1 - chance) / len(x))
    if right <= by_chance and trained > max(0.5, min(2 * chance, 0.9)):
        yield Finding(
            "validation is guessed, training is not",
            f"{right:.2f} of {len(x)} validation images are classified correctly, {trained:.2f} in "
            f"training; guessing gives {chance:.2f}",
            "labels that do not belong to their images, in one of the two; or other classes",
            "look at ten images of each with their labels",
        )
    elif never:
        yield Finding(
            "a class is never predicted",
            ", ".join(f"class {k}: 0 of {counts[k]} validation images" for k in never),
            "too few examples of it, or they look like another class's",
            'class_weight={class: weight} in fit_stages, "balanced" in tlkeras fit; more of them',
        )
    half = 1.96 * np.sqrt(max(right * (1 - right), 0.01) / len(x))
    if half > 0.1 or len(x) < LEAST:
        yield Finding(
            "too few validation images to tell",
            f"{right:.2f} of {len(x)}: that is ± {half:.2f} at best",
            "a share of so few images is mostly chance",
            "more images to judge by, or the mean of several draws",
        )


def _leaked(trained: Any, judged: Any) -> Finding | None:
    seen = {np.ascontiguousarray(image).tobytes() for image in trained}
    twice = sum(np.ascontiguousarray(image).tobytes() in seen for image in judged)
    if twice <= 0.005 * len(judged):
        return None
    return Finding(
        "validation images were trained on",
        f"{twice} of {len(judged)} are among the training images, pixel for pixel",
        "the data were split by file, and some images exist twice",
        "split by content, or by what the image is of: `tlkeras fit FOLDER` does",
    )


def _moved(model: keras.Model, before: keras.Model) -> Finding | None:
    """Find forgetting by how far the weights have moved (course section 1.9, symptom 4)."""
    now = {(w.path, tuple(w.shape)): w for w in model.weights}
    kernels = [w for w in before.weights if len(w.shape) >= 2]
    pairs = [(w, now[key]) for w in kernels if (key := (w.path, tuple(w.shape))) in now]
    if len(pairs) < len(kernels) / 2:
        raise ValueError(
            f"Expected the backbone as it was loaded; {len(kernels) - len(pairs)} of the "
            f"{len(kernels)} kernels of {before.name} are not in {model.name}."
        )
    old, new = ([keras.ops.convert_to_numpy(w) for w in side] for side in zip(*pairs, strict=True))
    way = sum(np.sum((a - b) ** 2) for a, b in zip(old, new, strict=True))
    drift = 100 * float(np.sqrt(way / sum(np.sum(a**2) for a in old)))
    if drift < DRIFT:
        return None
    return Finding(
        "the network has moved far from what it knew",
        f"kernels of the backbone moved by {drift:.1f} % of their size",
        "catastrophic forgetting: what it could do before is being overwritten",
        "a rate ten times lower, fewer blocks, or one more block per stage (progressive)",
        change=lambda plan: type(plan)(
            [s if n == 0 else s.replace(learning_rate=s.learning_rate / 10)
             for n, s in enumerate(plan.stages)]
        ),
    )  # fmt: skip
