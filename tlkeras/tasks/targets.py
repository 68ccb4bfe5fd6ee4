"""What each kind of label needs: a loss and metrics for a head without activation, and scores.

One class an image has softmax cross-entropy and accuracy; several labels have a sigmoid each,
binary cross-entropy, mean average precision, and thresholds chosen on validation; a number has
squared error, on a scale where it varies by 1, and mean absolute error in its own unit.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from sklearn import metrics

from tlkeras.tasks.contents import CLASS, LABELS, NUMBER
from tlkeras.tasks.task import Task

MAP, ERROR = "mean_average_precision", "mean_absolute_error"


class Feed:
    """What `fit_stages` is given for a task and a head of `len(task.classes)` outputs.

    Args:
        task: from `load_task`.
        rows: classes as rows of 0 and 1, which augmentation can mix.

    Attributes:
        train, validation, loss, metrics: as `fit_stages` takes them.

    >>> from tlkeras.tasks.targets import Feed
    >>> Feed(tlk.load_task("digits")).metrics
    ['accuracy']
    """

    def __init__(self, task: Task, rows: bool = False):
        self.task, self.scale = task, (0.0, 1.0)
        self.train, self.validation = task.train, task.validation
        self.loss: keras.losses.Loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.metrics: list[Any] = ["accuracy"]
        if task.kind == NUMBER:
            numbers = task.arrays("train", "label")[0].astype("float64")
            self.scale = float(numbers.mean()), float(numbers.std()) or 1.0
            self.loss = keras.losses.MeanSquaredError()
            self.metrics = [keras.metrics.MeanAbsoluteError("scaled_error")]
            self._map(lambda y: (y - self.scale[0]) / self.scale[1])
        elif task.kind == LABELS:
            self.loss = keras.losses.BinaryCrossentropy(from_logits=True)
            self.metrics = [_precision(len(task.classes))]
        elif rows:
            self.loss = keras.losses.CategoricalCrossentropy(from_logits=True)
            self._map(lambda y: tf.one_hot(y, len(task.classes)))

    def _map(self, change: Callable[[tf.Tensor], tf.Tensor]) -> None:
        self.train, self.validation = (
            data.map(lambda x, y: (x, change(y))) for data in (self.train, self.validation)
        )

    def finish(self, model: keras.Model) -> None:
        """After training: a model of a number gives it in its own unit, by its last layer."""
        if self.task.kind == NUMBER:
            mean, spread = self.scale
            kernel, bias = model.layers[-1].get_weights()
            model.layers[-1].set_weights([kernel * spread, bias * spread + mean])

    def judged(self, model: keras.Model) -> dict[str, Any]:
        """How good the trained model is: "measure" names what each kind of label is judged by.

        Of several labels with the `thresholds` of each, chosen on validation; of a number with
        the error of one who always says the mean of the training images. Without a test split
        what would be measured on it is None.
        """
        task, limits = self.task, None
        found: dict[str, Any] = {}
        for split in ("validation", "test"):
            if (data := getattr(task, split)) is None:
                found[f"{split}_{found['measure']}"] = None
                continue
            given, labels = outputs(model, data)
            if task.kind == LABELS and split == "validation":
                found["thresholds"] = limits = thresholds(given, labels)
            reached = scores(task.kind, given, labels, limits)
            if task.kind == NUMBER:
                reached["error_of_the_mean"] = float(np.abs(labels - self.scale[0]).mean())
            found |= {f"{split}_{name}": value for name, value in reached.items()}
            found["measure"] = next(iter(reached))
        return found


def _precision(labels: int) -> keras.metrics.Metric:
    """Mean average precision, by Keras: the area under each label's precision and recall."""
    return keras.metrics.AUC(
        curve="PR", name=MAP, multi_label=True, num_labels=labels, from_logits=True
    )


def class_weights(task: Task) -> dict[int, float]:
    """Weights for `fit_stages` by which every class counts the same in training; on average 1.

    Raises ValueError for other labels than classes.
    """
    if task.kind != CLASS:
        raise ValueError(
            "Balanced weights are for one class an image; these images have "
            f"{'several labels' if task.kind == LABELS else 'a number'} each: leave them out."
        )
    counts = np.bincount(task.arrays("train", "label")[0], minlength=len(task.classes))
    return {label: float(counts.sum() / (len(counts) * n)) for label, n in enumerate(counts)}


# After training ---------------------------------------------------------------------------------


def outputs(model: keras.Model, data: tf.data.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """The outputs for every image (images, outputs), and their labels."""
    pairs = [(model.predict_on_batch(x), y) for x, y in data.as_numpy_iterator()]
    given, labels = zip(*pairs, strict=True)
    return np.concatenate(given), np.concatenate(labels)


def thresholds(logits: np.ndarray, labels: np.ndarray) -> list[float]:
    """Of each label the probability from which it is taken to be there: the one of the best F1.

    Args:
        logits: (images, labels), of validation. labels: rows of 0 and 1. One that is never there
            keeps 0.5.
    """
    chosen = []
    for score, there in zip(_sigmoid(logits).T, labels.T, strict=True):
        if not there.any():
            chosen.append(0.5)
            continue
        precision, recall, limits = metrics.precision_recall_curve(there, score)
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        best = int(f1[:-1].argmax())
        below = score[score < limits[best]]  # halfway to the next, so that rounding moves none
        chosen.append(float((limits[best] + below.max(initial=0)) / 2))
    return chosen


def scores(
    kind: str, given: np.ndarray, labels: np.ndarray, limits: list[float] | None = None
) -> dict[str, float]:
    """How good outputs are, by what the kind of label is judged by; the first is the one to state.

    Args:
        given: (images, outputs), of a head without activation. labels: as a task gives them.
        limits: the `thresholds` of several labels.
    """
    if kind == NUMBER:
        error = np.abs(given[:, 0].astype("float64") - labels)
        return {ERROR: float(error.mean())}
    if kind == CLASS:
        return {"accuracy": float((given.argmax(-1) == labels).mean())}
    limits = limits or [0.5] * labels.shape[1]
    columns = [  # of a label that is never there precision says nothing
        (there, score, score >= limit)
        for there, score, limit in zip(labels.T, _sigmoid(given).T, limits, strict=True)
        if there.any()
    ]
    precisions = [metrics.average_precision_score(there, score) for there, score, _ in columns]
    f1 = [metrics.f1_score(there, found) for there, _, found in columns]
    return {MAP: float(np.mean(precisions)), "f1": float(np.mean(f1))}


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits.astype("float64")))
