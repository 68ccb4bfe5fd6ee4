"""Scores and thresholds of several labels, beside those counted by hand."""

import numpy as np
import pytest

from tlkeras.advice.scores import judge, thresholds


def scores(given, labels, limits=None):
    names = [str(number) for number in range(labels.shape[1])]
    return judge((given, labels), "labels", names, thresholds=limits)["scores"]


def test_means_leave_out_labels_that_are_never_there():
    labels = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0]])
    given = np.array([[0.95, 0.2, 0.9], [0.7, 0.95, 0.9], [0.8, 0.8, 0.9], [0.5, 0.1, 0.9]])
    found = scores(given, labels, [0.75, 0.5, 0.5])
    assert found["mean average precision"] == 1.0 and found["mean f1"] == 1.0
    assert scores(1 - given, labels)["mean average precision"] < 0.7


def test_thresholds_are_those_of_the_best_f1_and_move_no_example():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (200, 3))
    labels[:, 2] = 0
    given = 1 / (1 + np.exp(-rng.normal(2 * labels - 3, 1.0)))
    chosen = thresholds(given, labels)
    assert chosen[2] == 0.5
    tuned = scores(given, labels, chosen)["mean f1"]
    assert tuned > scores(given, labels)["mean f1"] + 0.1
    for label in range(2):
        for other in np.linspace(0.01, 0.99, 50):
            limits = [*chosen[:label], float(other), *chosen[label + 1 :]]
            assert scores(given, labels, limits)["mean f1"] <= tuned + 1e-12


def test_an_error_is_in_the_unit_of_the_number():
    found = judge((np.array([[3.0], [5.0]], "float32"), np.array([4.0, 7.0])), "number", ("age",))
    assert found["scores"]["mean absolute error"] == pytest.approx(1.5)


@pytest.mark.parametrize("right", [True, False])
def test_a_model_that_made_no_mistake_yet_may_make_one(right):
    truth = np.arange(100) % 2
    said = truth if right else 1 - truth
    found = judge((np.eye(2)[said], truth), "class", ("a", "b"))["scores"]
    for name in ("accuracy", "balanced accuracy"):
        value, low, high = found[name]
        assert (value, low, high) == pytest.approx(
            (1, 0.964, 1) if right else (0, 0, 0.036), abs=1e-3
        )
