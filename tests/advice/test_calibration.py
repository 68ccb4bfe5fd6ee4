"""Calibration: known errors are found, and the temperature puts them right."""

import numpy as np
import pytest

from tlkeras.advice.calibration import calibration, heated, temperature


def drawn(n=20_000, factor=1.0, seed=0):
    """Probabilities whose labels are drawn from them, then made `factor` times as sure."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(0, 1.5, (n, 3))
    true = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    labels = (rng.random((n, 1)) > true.cumsum(-1)).sum(-1)
    return heated(true, 1 / factor), labels


def test_honest_probabilities_have_no_error():
    found = calibration(*drawn())
    assert found.error < 0.01 and sum(found.share) == pytest.approx(1)
    assert found.temperature is None


def test_an_error_is_its_size():
    sure = np.tile([0.9, 0.1], (10, 1))
    found = calibration(sure, np.array([0, 1] * 5))  # says .9, is right half the time
    assert found.error == pytest.approx(0.4)
    assert found.confidence == pytest.approx((0.9,)) and found.accuracy == (0.5,)


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_the_temperature_undoes_what_was_done(factor):
    given, labels = drawn(factor=factor)
    assert temperature(given, labels) == pytest.approx(factor, rel=0.05)
    found = calibration(given, labels, chosen_on=drawn(factor=factor, seed=1))
    assert found.error > 0.05 and found.error_after < 0.015
