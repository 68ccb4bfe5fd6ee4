"""Domain adaptation: source images have labels; target images look different and have none.

>>> tlk.flavors.domain.information(np.full((5, 2), 0.5)) < 1e-9  # answers that say nothing
True
"""

from typing import Any

import keras
import numpy as np
from keras import ops

from tlkeras.blocks.internals import functional, nodes
from tlkeras.freezing.adapting import adapt_batchnorm

__all__ = ["GradientReversal", "adapt_batchnorm", "adversarial", "coral", "information"]
__all__ += ["two_domains"]


@keras.saving.register_keras_serializable("tlkeras")
class GradientReversal(keras.layers.Layer):
    """Outputs its input unchanged, and multiplies the gradient by minus `strength`.

    So the layers below learn to make worse what the layers above learn to do.

    Args:
        strength: factor of the reversed gradient.
        rise: training steps over which the strength grows from 0, as 2 / (1 + exp(-10 p)) - 1 with
            p from 0 to 1. 0: full strength from the start. The steps are counted in a weight, so
            the count is saved and continues after loading.

    Shapes: any, unchanged. Raises ValueError for a negative number.
    Source: Ganin et al. 2016, "Domain-Adversarial Training of Neural Networks", section 5.2.2.

    >>> layer = tlk.flavors.domain.GradientReversal(strength=0.5)
    >>> tuple(layer(np.array([[1.0, 2.0]])).shape)
    (1, 2)
    """

    def __init__(self, strength: float = 1.0, rise: int = 0, **kwargs: Any):
        super().__init__(**kwargs)
        if strength < 0 or rise < 0:
            raise ValueError(f"Expected numbers of at least 0; found {strength=} and {rise=}.")
        self.strength, self.rise = strength, rise

    def build(self, input_shape: Any) -> None:
        self.steps = self.add_weight(
            shape=(), initializer="zeros", trainable=False, name="steps", dtype="float32",
            autocast=False, aggregation="only_first_replica",
        )  # fmt: skip

    def call(self, inputs: Any, training: bool = False) -> Any:
        strength: Any = self.strength
        if self.rise:
            risen = ops.minimum(self.steps.value / self.rise, 1.0)
            strength = strength * (2 / (1 + ops.exp(-10 * risen)) - 1)
            strength = ops.cast(strength, inputs.dtype)
        if training:
            self.steps.assign(self.steps + 1)
        fixed = ops.stop_gradient(inputs)
        return fixed - strength * (inputs - fixed)  # the term in brackets is 0, its gradient is not

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "strength": self.strength, "rise": self.rise}


def adversarial(
    model: keras.Model, features: str, strength: float = 1.0, rise: int = 0, units: int = 64
) -> keras.Model:
    """Add an output to a classifier that predicts the domain through a gradient reversal (DANN).

    The returned model shares the classifier's layers: train the returned model, then use `model`.

    Args:
        model: a functional model with one input and one output.
        features: name of the layer of `model` whose output should not reveal the domain: (batch,
            n), or maps (batch, height, width, n), which are averaged over positions.
        strength, rise: as in `GradientReversal`.
        units: width of the hidden layer of the domain classifier.

    Returns:
        A model, not compiled, with the outputs "label", the output of `model`, and "domain", a
        logit (batch, 1) that is positive for the target. `two_domains` makes the data for `fit`.

    Raises:
        ValueError: `model` itself has no such layer (layers of nested models cannot be used).

    Source: Ganin et al. 2016, "Domain-Adversarial Training of Neural Networks".

    >>> x = keras.Input((4,))
    >>> hidden = keras.layers.Dense(8, "relu", name="hidden")(x)
    >>> model = keras.Model(x, keras.layers.Dense(3)(hidden))
    >>> sorted(tlk.flavors.domain.adversarial(model, "hidden").output)
    ['domain', 'label']
    """
    net = functional(model)
    calls = {node.operation.name: node for node in (nodes(net) if net else ())}
    if features not in calls:
        raise ValueError(f"Expected a layer of {model.name}, one of {[*calls]}; not {features!r}.")
    shared = calls[features].outputs[0]  # in this graph; the layer can also be part of others
    if len(shared.shape) == 4:
        shared = keras.layers.GlobalAveragePooling2D(name="domain_pool")(shared)
    shared = GradientReversal(strength, rise, name="domain_reversal")(shared)
    hidden = keras.layers.Dense(units, "relu", name="domain_hidden")(shared)
    logit = keras.layers.Dense(1, name="domain")(hidden)
    return keras.Model(model.input, {"label": model.output, "domain": logit})


def two_domains(source: np.ndarray, labels: np.ndarray, target: np.ndarray) -> tuple[Any, Any, Any]:
    """Return inputs, labels and sample weights for training an `adversarial` model with `fit`.

    Args:
        source: (n, ...), inputs from the source domain.
        labels: (n,), integers; -1 if unknown.
        target: (m, ...), inputs from the target domain.

    Returns:
        Inputs (n + m, ...), and two dictionaries with the keys "label" and "domain": one of labels
        and one of weights. Target inputs have the label 0 with a weight of 0. Both domains have the
        same total weight, and the mean weight of each output is 1, so that its loss is a mean over
        the known labels.

    Raises:
        ValueError: the inputs have different shapes, the labels do not match them, or no label is
            known.

    >>> printed, handwritten = np.ones((1, 4)), np.ones((3, 4))
    >>> x, y, weights = tlk.flavors.domain.two_domains(printed, np.array([7]), handwritten)
    >>> weights["label"]
    array([4., 0., 0., 0.], dtype=float32)
    """
    n, m, known = len(source), len(target), np.asarray(labels) >= 0
    if source.shape[1:] != target.shape[1:] or known.shape != (n,) or not m or not known.any():
        raise ValueError(
            "Expected source and target inputs of one shape, and a whole number for each of the "
            f"source, some not -1; found {source.shape}, {target.shape}, labels {known.shape}, of "
            f"which {known.sum()} are known."
        )
    whole = n + m
    y = {
        "label": np.concatenate([np.where(known, labels, 0), np.zeros(m)]).astype("int32"),
        "domain": np.repeat([0.0, 1.0], [n, m]).astype("float32")[:, None],
    }
    weights = {
        "label": np.concatenate([known * whole / known.sum(), np.zeros(m)]).astype("float32"),
        "domain": np.repeat([whole / 2 / n, whole / 2 / m], [n, m]).astype("float32"),
    }
    return np.concatenate([source, target]), y, weights


def coral(source: np.ndarray, target: np.ndarray, ridge: float = 0.1) -> np.ndarray:
    """Return source features with the mean, spread and correlations of the target features.

    A head trained on them fits the unchanged target features.

    Args:
        source: (n, d), features of the source domain; labels are not needed.
        target: (m, d), features of the target domain.
        ridge: added to the diagonal of both correlation matrices. The larger it is, the more only
            mean and spread are matched.

    Returns (n, d). Raises ValueError for features of different length.
    Source: Sun, Feng & Saenko 2016, "Return of Frustratingly Easy Domain Adaptation".

    >>> source = np.random.default_rng(0).normal(5, 2, (100, 3))
    >>> print(tlk.flavors.domain.coral(source, source + 4).mean().round())
    9.0
    """
    if source.ndim != 2 or target.ndim != 2 or source.shape[1] != target.shape[1]:
        raise ValueError(f"Expected features (n, d), (m, d); found {source.shape}, {target.shape}.")
    spreads = [np.maximum(features.std(axis=0), 1e-6) for features in (source, target)]
    x, z = ((f - f.mean(axis=0)) / s for f, s in zip((source, target), spreads, strict=True))
    moved = x @ _power(x.T @ x / len(x), -0.5, ridge) @ _power(z.T @ z / len(z), 0.5, ridge)
    return moved * spreads[1] + target.mean(axis=0)


def _power(covariance: np.ndarray, exponent: float, ridge: float) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance + ridge * np.eye(len(covariance)))
    return vectors * np.maximum(values, 1e-9) ** exponent @ vectors.T


def information(probabilities: np.ndarray) -> float:
    """Mutual information of predictions and images, in nats: a score for choosing without labels.

    It is the entropy of the mean prediction minus the mean entropy of the predictions. It is high
    if each prediction is confident and all classes are predicted, and lies between 0 and the
    logarithm of the number of classes.

    Args:
        probabilities: (n, classes). Raises ValueError if rows do not add up to 1.

    Source: Bridle, Heading & MacKay 1991, "Unsupervised Classifiers, Mutual Information and
    'Phantom Targets'".

    >>> tlk.flavors.domain.information(np.array([[1.0, 0.0], [0.0, 1.0]])).__round__(3)
    0.693
    """
    p = np.asarray(probabilities, float)
    if p.ndim != 2 or (p < 0).any() or not np.allclose(p.sum(axis=1), 1, atol=1e-3):
        raise ValueError(f"Expected probabilities (n, classes) that add up to 1; found {p.shape}.")
    mean, sure = p.mean(axis=0), (p * np.log(p + 1e-12)).sum(axis=1).mean()
    return float(sure - (mean * np.log(mean + 1e-12)).sum())
