"""How much training would change each block: gradients relative to the weights."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from sklearn.pipeline import Pipeline

from tlkeras.advice import linear
from tlkeras.advice.probing import (
    Taps,
    check_classes,
    chunks,
    class_numbers,
    outputs_of,
    taken,
    taps_of,
)
from tlkeras.blocks.find import Block
from tlkeras.freezing import policies
from tlkeras.freezing.flags import freeze
from tlkeras.training.rate_finder import as_found
from tlkeras.utils.tables import Table

BATCHES = 4


def relative_gradients(model: keras.Model, data: Any) -> Table:
    """Compare the gradient of every block with the size of its weights.

    First a linear classifier is fitted on the last block. Its loss is what the blocks below could
    still improve, and the gradients are those of this loss. A block with a large value would have
    to change most: the first blocks if the images have other noise or colours, the last blocks if
    the classes are different. This is a cheap hint, measured on four batches (arrays are split
    into batches of 64). It does not replace trying.

    Args:
        model: built, with a graph; a head is ignored. Its weights, flags and random states are
            restored afterwards. Weights that the user froze stay frozen and do not count.
        data: as for `tlk.probe`.

    Returns:
        A table with one row per block, bottom to top: its name, its role, the norm of its gradient
        divided by the norm of its weights (mean over batches), and that value as a share of the
        largest one. BatchNorm is frozen.

    Raises:
        ValueError: as for `tlk.probe`.

    Source: Lee, Chen, Tajwar, Kumar, Yao, Liang & Finn 2023, "Surgical Fine-Tuning Improves
    Adaptation to Distribution Shifts", section 4: relative gradient norm.

    >>> backbone = tlk.load_backbone("glyph_resnet_small", image_size=32)
    >>> x, y = np.random.uniform(0, 255, (16, 32, 32, 3)), np.arange(16) % 2
    >>> found = tlk.relative_gradients(backbone, (x, y))
    >>> [row[0] for row in found.cells], max(row[-1] for row in found.cells)
    (['stem', 'stack0', 'stack1'], '1.00')
    """
    given, taps = taken(model, data), taps_of(model)
    outputs, labels = outputs_of(taps, given)
    check_classes(labels)
    head = linear.classifier(linear.strength(outputs[-1], labels)).fit(outputs[-1], labels)
    with as_found(model):
        freeze(model, policies.named(*[block.name for block in taps.blocks]))
        sizes = _sizes(_classifier(taps, head), taps.blocks, given, head.classes_)
    largest = max(sizes) or 1.0
    rows = [
        (block.name, block.role, f"{size:.1e}", f"{size / largest:.2f}")
        for block, size in zip(taps.blocks, sizes, strict=True)
    ]
    return Table(rows, ("block", "role", "gradient / weights", "of the largest"))


def _classifier(taps: Taps, head: Pipeline) -> keras.Model:
    """Return the network up to its last block, with scikit-learn's fitted linear model on top."""
    pooled = [taps.model.outputs[i] for i in taps.places[-1]]
    features = pooled[0] if len(pooled) == 1 else keras.layers.Concatenate()(pooled)
    scale, linear_model = head[0], head[-1]
    kernel = (linear_model.coef_ / scale.scale_).T
    bias = linear_model.intercept_ - scale.mean_ @ kernel
    if len(head.classes_) == 2:  # scikit-learn has a single row, for the second class
        kernel, bias = np.hstack([-kernel, kernel]) / 2, np.hstack([-bias, bias]) / 2
    layer = keras.layers.Dense(len(head.classes_), trainable=False)
    model = keras.Model(taps.model.input, layer(features))
    layer.set_weights([kernel, bias])
    return model


def _sizes(
    model: keras.Model, blocks: Sequence[Block], data: Any, classes: np.ndarray
) -> list[float]:
    """Return the norm of each block's gradient divided by that of its weights (mean over batches).

    One step of gradient descent at learning rate 1 changes the weights by their gradient. This
    works on every backend.
    """
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(1.0), loss, run_eagerly=True)
    held = [[w for w in block.weights if w.trainable] for block in blocks]
    before = [list(map(keras.ops.convert_to_numpy, map(keras.ops.copy, w))) for w in held]
    found = []
    for x, y, *_ in itertools.islice(chunks(data), BATCHES):
        model.train_on_batch(x, np.searchsorted(classes, class_numbers(y)))
        found.append([_moved(*pair) for pair in zip(held, before, strict=True)])
    return np.mean(found, axis=0).tolist()


def _moved(weights: Sequence[keras.Variable], before: Sequence[np.ndarray]) -> float:
    """Return how far weights have moved, relative to their old size; restores the old values."""
    steps = [keras.ops.convert_to_numpy(w) - old for w, old in zip(weights, before, strict=True)]
    for weight, old in zip(weights, before, strict=True):
        weight.assign(old)
    moved, size = (sum(float((part**2).sum()) for part in parts) for parts in (steps, before))
    return math.sqrt(moved / size) if size else 0.0
