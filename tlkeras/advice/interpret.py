"""Evaluate a trained model on examples it has not seen: scores, mistakes, and where it looks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from matplotlib.figure import Figure

from tlkeras.advice.examples import Example, ExampleKeeper, shown
from tlkeras.advice.predictions import CLASS, LABELS
from tlkeras.advice.probing import chunks, class_numbers
from tlkeras.advice.scores import Judged, judge
from tlkeras.advice.scores import thresholds as best_thresholds
from tlkeras.advice.trained_model import TrainedModel
from tlkeras.display import judged
from tlkeras.inputs import intake
from tlkeras.runs.run import Run
from tlkeras.utils.tables import html_table, text_table

WORST, UNCERTAIN = "worst", "uncertain"


@dataclass(frozen=True, repr=False)
class Interpretation:
    """The results of a model on examples it has not seen.

    Attributes:
        record: all results, as `run.json` stores them: "split", "count", "names", "kind", "scores"
            (a value, or a value with its 95 % interval: value, low, high), and "classes"
            (precision, recall, f1 and support of each). For one class per example also "matrix"
            (one row per true class), "confused" (pairs) and "calibration"; for several labels
            "thresholds"; for numbers "pairs". "validation" has the scores on the validation data,
            if there are any.
        worst: the examples with the worst mistakes.
        uncertain: the examples with the least certain predictions.
    """

    record: dict[str, Any]
    worst: tuple[Example, ...]
    uncertain: tuple[Example, ...]

    @property
    def scores(self) -> dict[str, Any]:
        """The scores by name: a value, or a value and the ends of its 95 % interval."""
        return self.record["scores"]

    @property
    def examples(self) -> dict[str, tuple[Example, ...]]:
        """The kept examples: "worst" and "uncertain"."""
        return {WORST: self.worst, UNCERTAIN: self.uncertain}

    @property
    def matrix(self) -> np.ndarray:
        """The confusion matrix: entry [i, j] counts examples of class i predicted as class j."""
        return np.array(self.record["matrix"])

    def plot(self) -> Figure:
        """Plot the confusion matrix; returns a Figure.

        Raises ValueError if the examples do not have one class each.

        >>> model = keras.Sequential([
        ...     keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3),
        ...     keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2, "softmax"),
        ... ])
        >>> x, y = np.random.uniform(0, 255, (8, 8, 8, 3)), np.arange(8) % 2
        >>> found = tlk.interpret(model, (x, y), classes=["cat", "dog"], examples=0)
        >>> [label.get_text() for label in found.plot().axes[0].get_yticklabels()]
        ['cat', 'dog']
        """
        return judged.confusion(self._of_classes()["matrix"], self.record["names"])

    def plot_calibration(self) -> Figure:
        """Plot accuracy against confidence; returns a Figure. Raises ValueError as `plot` does."""
        found = self._of_classes()["calibration"]
        return judged.reliability(found["confidence"], found["accuracy"], found["share"])

    def plot_examples(self, which: str = WORST) -> Figure:
        """Show the "worst" or most "uncertain" examples, and where the model looked.

        Returns a Figure.
        """
        chosen = self.examples[which]
        titles = [f"is {one.truth}\nsaid {one.answer}" for one in chosen]
        return judged.gallery([one.image for one in chosen], titles, [one.heat for one in chosen])

    def _of_classes(self) -> dict[str, Any]:
        if "matrix" not in self.record:
            raise ValueError("Expected one class for each example; found labels or numbers.")
        return self.record

    def _rows(self) -> list[tuple]:
        return [
            (r["class"], f"{r['precision']:.3f}", f"{r['recall']:.3f}", f"{r['support']:,}")
            for r in self.record["classes"]
        ]

    def _said(self) -> list[str]:
        lines = [f"{self.record['count']:,} examples ({self.record['split']})"]
        for name, value in self.scores.items():
            spread = isinstance(value, tuple)
            ends = f" (95 % interval {value[1]:.3f} to {value[2]:.3f})" if spread else ""
            lines.append(f"{name} {value[0] if spread else value:.3f}{ends}")
        for pair in self.record.get("confused", [])[:3]:
            lines.append(f"{pair['count']} of {pair['of']} {pair['is']} taken for "
                         f"{pair['taken for']}")  # fmt: skip
        return lines

    _header = ("class", "precision", "recall", "examples")

    def __repr__(self) -> str:
        rows = [text_table(self._rows(), self._header)] if self.record["classes"] else []
        return "\n".join([*self._said(), *rows])

    def _repr_html_(self) -> str:
        said = html_table([(line,) for line in self._said()], ("",))
        return said + (html_table(self._rows(), self._header) if self.record["classes"] else "")


def interpret(
    model: keras.Model | Run | str,
    data: Any,
    *,
    classes: Sequence[str] | None = None,
    validation_data: Any = None,
    thresholds: Sequence[float] | None = None,
    examples: int = 8,
) -> Interpretation:
    """Evaluate a model on data that it was not trained on, and show its mistakes.

    Args:
        model: a Run, its folder, or a model that takes the inputs of `data`.
        data: what `tlk.load_task` returned: the model is evaluated on its test split, or on its
            validation split if there is no test split ("split" in the record says which). Or a
            finite tf.data.Dataset or PyDataset, or (x, y) arrays.
        classes: the class names. None: those of the task or the run, or numbers.
        validation_data: other examples, used to choose the calibration temperature and the
            thresholds. None: the task's validation split, if the test split is evaluated.
        thresholds: for several labels, the probability from which each counts as present. None:
            those of the run, otherwise those with the best F1 on the validation data, otherwise
            0.5.
        examples: how many of the worst and of the most uncertain examples to keep with their image
            and a map of where the model looked (Grad-CAM). They are only for inspection: once you
            change the model because of test images, they no longer are test images.

    Raises:
        ValueError: for infinite data, labels or names that do not fit the model, or NaN outputs.

    Source: Guo et al. 2017 (calibration); Selvaraju et al. 2017 (Grad-CAM).

    >>> task = tlk.load_task("digits", labels_per_class=5)
    >>> model = tlk.add_head(tlk.load_backbone("glyph_resnet_small", image_size=32), classes=10)
    >>> run = tlk.fit_stages(model, tlk.recipes.head_only(1), task.train, verbose=0, seed=0)
    >>> found = tlk.interpret(run, task, examples=2)
    >>> found.record["split"], found.matrix.shape, len(found.worst)
    ('test', (10, 10), 2)
    """
    split, judged_on, chosen_on, files = _parts(data, validation_data)
    with TrainedModel(model) as trained:
        names = _names(trained, classes or getattr(data, "classes", None))
        kept = ExampleKeeper(trained.kind, examples)
        found = _outputs(trained, judged_on, kept)
        other = None if chosen_on is None else _outputs(trained, chosen_on, None)
        record = {"split": split, "count": len(found[1]), "names": names, "kind": trained.kind}
        limits = thresholds or trained.record.get("thresholds")
        if trained.kind == LABELS and limits is None and (other or split == "validation"):
            limits = best_thresholds(*(other or found))
        record |= judge(found, trained.kind, names, other, limits)
        record |= {"thresholds": limits} if trained.kind == LABELS else {}
        if other is not None:
            record["validation"] = judge(other, trained.kind, names, None, limits)["scores"]
        worst, uncertain = (shown(rows, trained, names, files, limits) for rows in kept.found)
    return Interpretation(record, worst, uncertain)


def _names(trained: TrainedModel, given: Sequence[str] | None) -> tuple[str, ...]:
    """Return the class names; raises ValueError unless they equal those of the run, in order."""
    names = tuple(given or trained.classes)
    known = trained.classes if trained.record else names
    if len(names) != len(trained.classes) or names != known:
        raise ValueError(
            f"Expected data with the {len(trained.classes)} classes of the model, in their order "
            f"({', '.join(trained.classes[:10])}); found {', '.join(names[:10])}."
        )
    return names


def _parts(data: Any, validation_data: Any) -> tuple[str, Any, Any, Sequence[str]]:
    """Return the evaluated split, its data, the data used for choices, and its image files."""
    split, files, judged_on = "the data given", (), data
    if hasattr(data, "validation") and hasattr(data, "test"):  # a Task, without importing it
        split = "test" if data.test is not None else "validation"
        judged_on = getattr(data, split)
        if split == "test" and validation_data is None:
            validation_data = data.validation
        if "file" in data.features:
            files = data.arrays(split, "file")[0]
    for part in (judged_on, validation_data):
        if part is not None and intake.endless(part):
            raise ValueError("Expected data that come to an end; pass data.take(...) of them.")
    return split, judged_on, validation_data, files


def _outputs(trained: TrainedModel, data: Any, kept: ExampleKeeper | None) -> Judged:
    """Return the model's outputs for all of the data, and the true labels."""
    outputs, truths, count = [], [], 0
    for x, y, *_ in chunks(data):
        given = trained.probabilities(x)
        if not np.isfinite(given).all():
            raise ValueError("Expected numbers from the model; found NaN. Did training diverge?")
        truth = _truth(np.asarray(y), given, trained.kind)
        if kept is not None:
            kept.look(x, given, truth, count)
        count += len(truth)
        outputs.append(given)
        truths.append(truth)
    if not outputs:
        raise ValueError("Expected at least one batch of data to judge on; found none.")
    return np.concatenate(outputs), np.concatenate(truths)


def _truth(y: np.ndarray, given: np.ndarray, kind: str) -> np.ndarray:
    """Return the labels in the form of their kind: class numbers, rows of 0/1, or of numbers."""
    if kind != CLASS:
        rows = y.reshape(len(y), -1)
        if rows.shape != given.shape:
            raise ValueError(
                f"Expected {given.shape[1]} labels or numbers for each example, one per output; "
                f"found {rows.shape[1]}."
            )
        return rows
    numbers = class_numbers(y).astype(int)
    if numbers.min() < 0 or numbers.max() >= given.shape[1]:
        raise ValueError(
            f"Expected labels from 0 to {given.shape[1] - 1}, as the model has {given.shape[1]} "
            f"classes; found {numbers.min()} to {numbers.max()}."
        )
    return numbers
