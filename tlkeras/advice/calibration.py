"""Do the predicted probabilities match the accuracy? Calibration error and temperature scaling.

Source: Guo et al. 2017, "On Calibration of Modern Neural Networks".
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar  # type: ignore[import-untyped]
from scipy.special import softmax  # type: ignore[import-untyped]

BINS = 15
TINY = 1e-12


@dataclass(frozen=True)
class Calibration:
    """How closely the predicted confidence matches the actual accuracy.

    The examples are sorted into bins of equal width by the probability of the predicted class.

    Attributes:
        confidence, accuracy, share: for each bin that has examples, the mean probability, the
            share of right predictions, and the bin's share of all examples.
        error: the expected calibration error: the mean distance between confidence and accuracy,
            weighted by the bins' shares.
        temperature: the number to divide the scores by. Above 1 the model is overconfident, below
            1 underconfident. None if there were no other examples to choose it on.
        error_after: the calibration error of the same examples after that division, or None.
    """

    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]
    share: tuple[float, ...]
    error: float
    temperature: float | None = None
    error_after: float | None = None


def calibration(
    probabilities: np.ndarray,
    labels: np.ndarray,
    chosen_on: tuple[np.ndarray, np.ndarray] | None = None,
) -> Calibration:
    """Measure how well a model is calibrated.

    Args:
        probabilities: (examples, classes). labels: (examples,), class numbers.
        chosen_on: probabilities and labels of other examples, used to choose the temperature.
    """
    found = _bins(probabilities, labels)
    if chosen_on is None:
        return Calibration(*found)
    best = temperature(*chosen_on)
    return Calibration(*found, best, _bins(heated(probabilities, best), labels)[-1])


def temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature that makes these labels most likely; between 1/20 and 20."""

    def loss(logarithm: float) -> float:
        right = heated(probabilities, np.exp(logarithm))[np.arange(len(labels)), labels]
        return float(-np.log(right + TINY).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def heated(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return the probabilities after dividing the scores by a temperature."""
    return softmax(np.log(probabilities.astype("float64") + TINY) / temperature, axis=-1)


def _bins(
    probabilities: np.ndarray, labels: np.ndarray
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...], float]:
    sure, right = probabilities.max(-1), probabilities.argmax(-1) == labels
    place = np.minimum((sure * BINS).astype(int), BINS - 1)
    members = [place == number for number in np.unique(place)]
    confidence = tuple(float(sure[m].mean()) for m in members)
    accuracy = tuple(float(right[m].mean()) for m in members)
    share = tuple(float(m.mean()) for m in members)
    distances = (abs(c - a) * s for c, a, s in zip(confidence, accuracy, share, strict=True))
    return confidence, accuracy, share, float(sum(distances))
