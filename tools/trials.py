"""Code shared by several measurements: draws of labels, a synthetic shift, training from scratch.

Arguments: `labels` and `y` are arrays of integers, `x` of inputs, one per example; `rng` is a NumPy
generator, whose state is part of a trial.
"""

import tlkeras as tlk

import keras  # isort: skip  (after tlkeras, which keeps TensorFlow quiet)
import numpy as np
from sklearn.metrics import balanced_accuracy_score

BLINDS = 128 + 127 * np.sin(1.3 * np.arange(32))
MIDDLE = ("block4c_add", "block5c_add")  # two middle blocks of efficientnet_lite0


# --- data ----------------------------------------------------------------------------------------


def behind_blinds(images: np.ndarray) -> np.ndarray:
    """Put images of 32 x 32 behind bright and dark stripes that invert them: a synthetic shift."""
    return np.abs(images - BLINDS[:, None]).astype("float32")


def drawn(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return indices of `count` examples of each class, drawn by the seed; 0 means all examples."""
    if not count:
        return np.arange(len(labels))
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    return np.concatenate([rng.choice(m, count, replace=False) for m in members])


def in_passes(count: int, wanted: int, rng: np.random.Generator) -> np.ndarray:
    """Return `wanted` indices of `count` examples; all occur once before any is repeated."""
    passes = range(-(-wanted // count))
    return np.concatenate([rng.permutation(count) for _ in passes])[:wanted]


def class_weights(y: np.ndarray, classes: int) -> dict[int, float]:
    """Return class weights for `fit` that make all classes count the same."""
    counts = np.maximum(np.bincount(y, minlength=classes), 1)
    return dict(enumerate(len(y) / classes / counts))


def standard(x: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Standardise `x` with the mean and the spread of `like`."""
    return (x - like.mean(axis=0)) / (like.std(axis=0) + 1e-6)


# --- networks ------------------------------------------------------------------------------------


def pooled_reader(network: str, side: int) -> keras.Model:
    """Return a model from images to outputs averaged over positions.

    For efficientnet_lite0 these are the outputs of two middle blocks, else those of the last block.
    """
    backbone, pool = tlk.load_backbone(network, side), keras.layers.GlobalAveragePooling2D()
    if network != "efficientnet_lite0":
        return keras.Sequential([backbone, pool])
    _, scale, inside = backbone.layers
    outputs = [pool(inside.get_layer(name).output) for name in MIDDLE]
    both = keras.Model(inside.input, keras.layers.Concatenate()(outputs))
    return keras.Sequential([keras.Input((side, side, 3)), scale, both])


def new_head(weights: list[np.ndarray]) -> list[np.ndarray]:
    """Return initial weights of a new last layer for a model with these weights."""
    *_, kernel, bias = weights
    head = keras.layers.Dense(len(bias))
    head.build((None, len(kernel)))
    return head.get_weights()


def drift(model: keras.Model, start: list[np.ndarray]) -> float:
    """Return how far all weights but the head's two moved, in percent of their initial norm."""
    pairs = list(zip(model.get_weights()[:-2], start[:-2], strict=True))
    moved = sum(float(np.sum((new - old) ** 2)) for new, old in pairs)
    return 100 * (moved / sum(float(np.sum(old**2)) for _, old in pairs)) ** 0.5


# --- training ------------------------------------------------------------------------------------


def forget(optimizer: keras.optimizers.Optimizer) -> None:
    """Reset an optimizer to its state before the first step; keep its learning rate."""
    for variable in optimizer.variables:
        if "learning_rate" not in variable.path:
            variable.assign(keras.ops.zeros_like(variable))


def cosine(rate: float, step: int, steps: int) -> float:
    """Return the learning rate at a step of a cosine decay from `rate` to zero."""
    return rate * (1 + np.cos(np.pi * step / steps)) / 2


def fit(model: keras.Model, x, y, rate: float, steps: int, batch: int, rng, **options) -> None:
    """Train for `steps` steps with cosine decay and a reset optimizer, without retracing."""

    def set_rate(step, logs=None):
        model.optimizer.learning_rate = cosine(rate, step, steps)

    forget(model.optimizer)
    order = in_passes(len(y), steps * batch, rng)
    turning = keras.callbacks.LambdaCallback(on_train_batch_begin=set_rate)
    model.fit(
        x[order], y[order], batch, verbose=0, shuffle=False, callbacks=[turning], **options
    )  # fmt: skip


def accuracy(model: keras.Model, x: np.ndarray, y: np.ndarray, batch: int = 100) -> float:
    """Return the balanced accuracy in [0, 1] of a model that outputs logits."""
    found = model.predict(x, batch_size=batch, verbose=0).argmax(axis=-1)
    return float(balanced_accuracy_score(y, found))
