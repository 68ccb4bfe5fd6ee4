"""Linear models on features: a classifier, its regularisation, and the LogME score."""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score, train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

STRENGTHS, FOLDS, FEW = (0.01, 0.1, 1.0), 3, 500


def classifier(strength: float) -> Pipeline:
    """Logistic regression on features scaled to unit variance; small `strength` regularises."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))


def strength(features: np.ndarray, labels: np.ndarray) -> float:
    """Return the strength with the best log likelihood on held-out examples.

    Uses cross-validation on at most 500 of the examples (on all of them if there are more than 250
    classes). Returns 1 if a class has only one example.
    """
    counts = np.unique(labels, return_counts=True)[1]
    if len(labels) > FEW >= 2 * len(counts) and counts.min() > 1:
        features, _, labels, _ = train_test_split(
            features, labels, train_size=FEW, stratify=labels, random_state=0
        )
        counts = np.unique(labels, return_counts=True)[1]
    if counts.min() < 2:
        return STRENGTHS[-1]
    options = {"cv": min(FOLDS, counts.min()), "scoring": "neg_log_loss"}
    scores = [
        cross_val_score(classifier(one), features, labels, **options).mean() for one in STRENGTHS
    ]
    return STRENGTHS[int(np.argmax(scores))]


def logme(features: np.ndarray, labels: np.ndarray) -> float:
    """Return LogME: the log evidence per example of a Bayesian linear model, mean over classes.

    There is one model for each class against the rest. Higher is better.

    Args:
        features: (examples, channels). labels: one class for each example.

    Source: You, Liu, Wang & Long 2021, "LogME: practical assessment of pre-trained models for
    transfer learning", with the fixed point of its 2022 extension.

    >>> x = np.random.default_rng(0).normal(size=(90, 5))
    >>> y = (x[:, 0] > 0).astype(int)
    >>> from tlkeras.advice.linear import logme
    >>> logme(x, y) > logme(x[:, 1:], y)
    True
    """
    left, scale, _ = np.linalg.svd(features.astype("float64"), full_matrices=False)
    scale, count = scale**2, len(labels)
    found = []
    for one in np.unique(labels):
        wanted = (labels == one).astype("float64")
        seen = (left.T @ wanted) ** 2
        unseen = max(float(wanted @ wanted - seen.sum()), 0.0)
        ratio, evidence = 1.0, 0.0  # ratio: precision of the weights / precision of the noise
        for _ in range(100):
            known = (scale / (scale + ratio)).sum()  # effective number of parameters
            size = (scale * seen / (scale + ratio) ** 2).sum()
            missed = (seen / (1 + scale / ratio) ** 2).sum() + unseen
            alpha, beta = known / (size + 1e-12), (count - known) / (missed + 1e-12)
            evidence = 0.5 * (
                len(scale) * np.log(alpha) + count * np.log(beta / (2 * np.pi))
                - np.log(alpha + beta * scale).sum() - beta * missed - alpha * size
            )  # fmt: skip
            before, ratio = ratio, alpha / beta
            if abs(ratio - before) <= 1e-4 * before:
                break
        found.append(evidence / count)
    return float(np.mean(found))
