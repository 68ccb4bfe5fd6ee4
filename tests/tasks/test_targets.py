"""Scores and thresholds of every kind of label, beside those counted by hand."""

import numpy as np
import pytest

from tlkeras.tasks import targets


def test_accuracy_is_of_the_largest_output():
    given = np.array([[1.0, 2.0], [3.0, 2.0], [0.0, 1.0]])
    assert targets.scores("class", given, np.array([1, 0, 0])) == {"accuracy": pytest.approx(2 / 3)}


def test_the_error_of_a_number_is_in_its_unit():
    found = targets.scores("number", np.array([[3.0], [5.0]], "float32"), np.array([4.0, 7.0]))
    assert found == {"mean_absolute_error": 1.5}


def test_mean_average_precision_leaves_out_labels_that_are_never_there():
    labels = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0]], "float32")
    given = np.array([[3, -1, 9], [1, 3, 9], [2, 2, 9], [0, -2, 9]], "float32")
    found = targets.scores("labels", given, labels, [0.8, 0.5, 0.5])
    assert found["mean_average_precision"] == 1.0 and found["f1"] == 1.0
    worse = targets.scores("labels", -given, labels)
    assert worse["mean_average_precision"] < 0.7


def test_thresholds_are_those_of_the_best_f1_and_move_no_example():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (200, 3)).astype("float32")
    labels[:, 2] = 0
    logits = rng.normal(2 * labels - 3, 1.0)
    chosen = targets.thresholds(logits, labels)
    assert chosen[2] == 0.5
    at_half = targets.scores("labels", logits, labels)["f1"]
    tuned = targets.scores("labels", logits, labels, chosen)["f1"]
    assert tuned > at_half + 0.1
    for label in range(2):
        for other in np.linspace(0.01, 0.99, 50):
            limits = [*chosen[:label], float(other), *chosen[label + 1 :]]
            assert targets.scores("labels", logits, labels, limits)["f1"] <= tuned
