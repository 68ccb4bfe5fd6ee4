"""Do probabilities mean what they say: reliability, expected calibration error, temperature.

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
    """How well the probability of the class chosen is the share in which it is right.

    Attributes:
        confidence, accuracy, share: of each bin of equal width that has examples, the mean
            probability, the share that is right, and the share of all examples.
        error: the expected calibration error, the mean of their distances.
        temperature: by which scores should be divided, or None where there was nothing to choose
            it on but the examples judged. above 1: too sure of itself; below 1: not sure enough.
        error_after: the error of the examples judged once that is done.
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
    """Measures it.

    Args:
        probabilities: (examples, classes). labels: (examples,), class numbers.
        chosen_on: the same of other examples, on which the temperature is chosen.
    """
    found = _bins(probabilities, labels)
    if chosen_on is None:
        return Calibration(*found)
    best = temperature(*chosen_on)
    return Calibration(*found, best, _bins(heated(probabilities, best), labels)[-1])


def temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """That at which these labels are the likeliest; between 1/20 and 20."""

    def loss(logarithm: float) -> float:
        right = heated(probabilities, np.exp(logarithm))[np.arange(len(labels)), labels]
        return float(-np.log(right + TINY).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def heated(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities of the scores divided by a temperature."""
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
