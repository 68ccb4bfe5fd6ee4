"""Scores of a model on examples it has not seen, with their confidence intervals."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import binomtest  # type: ignore[import-untyped]
from sklearn import metrics

from tlkeras.advice.calibration import calibration
from tlkeras.advice.predictions import CLASS, LABELS

DRAWS = 1000  # bootstrap samples, for the interval of balanced accuracy
DRAWN = 500  # predicted numbers that the report plots
PAIRS = 10  # most confused pairs of classes to list

Judged = tuple[np.ndarray, np.ndarray]  # the model's outputs, and the true labels


def judge(
    found: Judged,
    kind: str,
    classes: Sequence[str],
    chosen_on: Judged | None = None,
    thresholds: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Return scores, results per class and calibration, as dictionaries.

    Args:
        found: outputs (examples, classes), and the true class numbers, rows of 0 and 1, or numbers.
        kind: "class", "labels" or "number". classes: their names.
        chosen_on: outputs and labels of other examples, used to choose the temperature.
        thresholds: the probability from which each label counts as present; None: 0.5.
    """
    if kind == CLASS:
        return _of_classes(*found, classes, chosen_on)
    if kind == LABELS:
        return _of_labels(*found, classes, np.array(thresholds or 0.5))
    return _of_numbers(*found)


def _of_classes(
    given: np.ndarray, truth: np.ndarray, classes: Sequence[str], chosen_on: Judged | None
) -> dict[str, Any]:
    numbers, said = range(len(classes)), given.argmax(-1)
    matrix = metrics.confusion_matrix(truth, said, labels=numbers)
    right = given[np.arange(len(truth)), truth]
    return {
        "scores": _intervals(matrix) | {"log loss": float(-np.log(right + 1e-12).mean())},
        "classes": _each(truth, said, classes, labels=numbers),
        "matrix": matrix,
        "confused": _confused(matrix, classes),
        "calibration": vars(calibration(given, truth, chosen_on)),
    }


def _each(truth: Any, said: Any, classes: Sequence[str], **options: Any) -> list[dict[str, Any]]:
    columns = metrics.precision_recall_fscore_support(truth, said, zero_division=0, **options)
    return [
        {
            "class": name,
            "precision": float(p),
            "recall": float(r),
            "f1": float(f),
            "support": int(n),
        }
        for name, p, r, f, n in zip(classes, *columns, strict=True)
    ]


def _intervals(matrix: np.ndarray) -> dict[str, tuple[float, float, float]]:
    """Return accuracy and balanced accuracy, each with its 95 % interval.

    The interval of accuracy is exact (Clopper and Pearson 1934). That of balanced accuracy is a
    bootstrap interval (Efron 1979): the middle 95 % over resamples of the examples. If all
    predictions are right, or all wrong, every resample is too; then the interval's inner end is
    taken from that of accuracy. Classes without examples do not count in balanced accuracy.
    """
    cells = np.flatnonzero(matrix)
    truth, said = np.unravel_index(cells, matrix.shape)
    counts = matrix.reshape(-1)[cells]
    drawn = np.random.default_rng(0).multinomial(counts.sum(), counts / counts.sum(), DRAWS)
    every = np.concatenate([counts[None], drawn])
    hits, supports = np.zeros((2, len(every), len(matrix)))
    for cell, (true, seen) in enumerate(zip(truth, said, strict=True)):
        supports[:, true] += every[:, cell]
        hits[:, true] += every[:, cell] * (true == seen)
    recall = np.divide(hits, supports, out=np.full_like(hits, np.nan), where=supports > 0)
    found, balanced = binomtest(np.trace(matrix), matrix.sum()), np.nanmean(recall, axis=1)
    exact = found.proportion_ci()
    low, high = np.quantile(balanced[1:], [0.025, 0.975])
    low = exact.low if found.statistic == 1 else low
    high = exact.high if found.statistic == 0 else high
    return {
        "accuracy": (float(found.statistic), float(exact.low), float(exact.high)),
        "balanced accuracy": (float(balanced[0]), float(low), float(high)),
    }


def _confused(matrix: np.ndarray, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return the most frequent confusions: a true class, and the class predicted instead."""
    wrong = matrix * (1 - np.eye(len(matrix), dtype=int))
    places = [divmod(int(cell), len(wrong)) for cell in np.argsort(-wrong, axis=None)[:PAIRS]]
    return [
        {"is": classes[i], "taken for": classes[j], "count": int(wrong[i, j]),
         "of": int(matrix[i].sum())}
        for i, j in places
        if wrong[i, j]
    ]  # fmt: skip


def _of_labels(
    given: np.ndarray, truth: np.ndarray, classes: Sequence[str], limits: np.ndarray
) -> dict[str, Any]:
    said = given >= limits
    each = _each(truth, said, classes, average=None)
    for row, true, score in zip(each, truth.T, given.T, strict=True):
        known = true.any()  # it is not defined for a label that no example has
        row["average precision"] = (
            float(metrics.average_precision_score(true, score)) if known else None
        )
    there = [row for row in each if row["average precision"] is not None]
    means = {n: [row[n] for row in there] or [0.0] for n in ("average precision", "f1")}
    scores = {
        "mean average precision": float(np.mean(means["average precision"])),
        "mean f1": float(np.mean(means["f1"])),
        "every label right": float((said == truth).all(axis=1).mean()),
        "labels right": float((said == truth).mean()),
    }
    return {"scores": scores, "classes": each}


def thresholds(probabilities: np.ndarray, labels: np.ndarray) -> list[float]:
    """Return, for each label, the probability threshold with the best F1.

    Args:
        probabilities: (examples, labels).
        labels: rows of 0 and 1. A label that no example has gets 0.5.
    """
    chosen = []
    for score, there in zip(probabilities.T, labels.T, strict=True):
        if not there.any():
            chosen.append(0.5)
            continue
        precision, recall, limits = metrics.precision_recall_curve(there, score)
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        best = int(f1[:-1].argmax())
        below = score[score < limits[best]]  # halfway to the next score, to be safe from rounding
        chosen.append(float((limits[best] + below.max(initial=0)) / 2))
    return chosen


def _of_numbers(given: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    given, truth = given.reshape(len(given), -1), truth.reshape(len(truth), -1)
    scores = {
        "mean absolute error": float(metrics.mean_absolute_error(truth, given)),
        "root mean squared error": float(metrics.root_mean_squared_error(truth, given)),
        "error of always saying the mean": float(np.abs(truth - truth.mean(0)).mean()),
    }
    if len(truth) > 1:
        scores["share of the variance explained"] = float(metrics.r2_score(truth, given))
    return {"scores": scores, "classes": [], "pairs": np.stack([truth, given], axis=1)[:DRAWN]}
