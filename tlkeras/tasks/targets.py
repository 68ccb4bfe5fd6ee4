"""What each kind of label needs: a loss and metrics for a head without activation.

One class an image has softmax cross-entropy and accuracy; several labels have a sigmoid each,
binary cross-entropy and mean average precision; a number has squared and absolute error, on a
scale where it varies by 1.
"""

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from sklearn.utils.class_weight import compute_class_weight

from tlkeras.tasks.contents import CLASS, LABELS, NUMBER
from tlkeras.tasks.task import Task

FEW = 100  # images for validation
MEMORY = 2 * 2**30  # bytes of images as floats; more of them are streamed


class FitInputs:
    """What `fit_stages` is given for a task and a head of `len(task.classes)` outputs.

    Args:
        task: from `load_task`.
        rows: classes as rows of 0 and 1, which augmentation can mix.

    Attributes:
        train, validation: as `fit_stages` takes them. Arrays, since the cache looks at an array's
            images once and at a stream's in every epoch; streams where they take more than 2 GiB.
        loss, metrics: as `fit_stages` takes them.
        monitor: by which to choose the best epoch: what a user is told in the end; but the loss
            where classes or labels are judged on so few images that many epochs do equally well.

    >>> from tlkeras.tasks.targets import FitInputs
    >>> FitInputs(tlk.load_task("digits")).metrics
    ['accuracy']
    """

    def __init__(self, task: Task, rows: bool = False):
        self.task, self.scale = task, (0.0, 1.0)
        self.train, self.validation = _data(task)
        self.loss: keras.losses.Loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.metrics: list[Any] = ["accuracy"]
        told = "accuracy"
        if task.kind == NUMBER:
            numbers = task.arrays("train", "label")[0].astype("float64")
            self.scale = float(numbers.mean()), float(numbers.std()) or 1.0
            self.loss = keras.losses.MeanSquaredError()
            self.metrics = [keras.metrics.MeanAbsoluteError("scaled_error")]
            told = "scaled_error"
            self._map(lambda y: (y - self.scale[0]) / self.scale[1])
        elif task.kind == LABELS:
            told = "mean_average_precision"
            self.loss = keras.losses.BinaryCrossentropy(from_logits=True)
            self.metrics = [
                keras.metrics.AUC(  # the area under each label's precision and recall
                    curve="PR", name=told, multi_label=True,
                    num_labels=len(task.classes), from_logits=True,
                )
            ]  # fmt: skip
        elif rows:
            self.loss = keras.losses.CategoricalCrossentropy(from_logits=True)
            self._map(lambda y: tf.one_hot(y, len(task.classes)))
        few = task.kind != NUMBER and task.counts["validation"] < FEW
        self.monitor = "val_loss" if few else f"val_{told}"

    def _map(self, change: Callable[[tf.Tensor], tf.Tensor]) -> None:
        self.train, self.validation = (
            (data[0], np.asarray(change(data[1])))
            if isinstance(data, tuple)
            else data.map(lambda x, y: (x, change(y)))
            for data in (self.train, self.validation)
        )

    def finish(self, model: keras.Model) -> None:
        """After training: a model of a number gives it in its own unit, by its last layer."""
        if self.task.kind == NUMBER:
            mean, spread = self.scale
            kernel, bias = model.layers[-1].get_weights()
            model.layers[-1].set_weights([kernel * spread, bias * spread + mean])


def _data(task: Task) -> tuple[Any, Any]:
    """For training and validation: arrays, or streams of batches."""
    images = task.counts["train"] + task.counts["validation"]
    if images * math.prod(task.image_size) * 3 * 4 <= MEMORY:
        return task.arrays("train", "image", "label"), task.arrays("validation", "image", "label")
    return task.train, task.validation


def class_weights(task: Task) -> dict[int, float]:
    """Weights for `fit_stages` by which every class counts the same in training; on average 1.

    Raises ValueError for other labels than classes.
    """
    if task.kind != CLASS:
        raise ValueError(
            "Balanced weights are for one class an image; these images have "
            f"{'several labels' if task.kind == LABELS else 'a number'} each: leave them out."
        )
    labels, numbers = task.arrays("train", "label")[0], np.arange(len(task.classes))
    weights = compute_class_weight("balanced", classes=numbers, y=labels)
    return dict(enumerate(weights.tolist()))
