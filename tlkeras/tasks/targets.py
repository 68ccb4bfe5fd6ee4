"""Choose the loss and metrics that each kind of label needs, for a head without activation.

One class per image: softmax cross-entropy and accuracy. Several labels per image: binary
cross-entropy and mean average precision, with a sigmoid per label. A number per image: squared and
absolute error of the number scaled to mean 0 and standard deviation 1.
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
MEMORY = 2 * 2**30  # bytes of images as floats; if there are more, they are streamed


class FitInputs:
    """The arguments of `fit_stages` for a task and a head with `len(task.classes)` outputs.

    Args:
        task: from `load_task`.
        rows: whether to turn classes into one-hot rows, which augmentation can mix.

    Attributes:
        train, validation: data for `fit_stages`: arrays, because the cache reads the images of an
            array once but those of a stream in every epoch; streams if they take more than 2 GiB.
        loss, metrics: for `fit_stages`.
        monitor: the metric that chooses the best epoch. It is the one reported at the end, except
            for classes or labels with fewer than 100 validation images: there many epochs reach
            the same score, and the loss is used.

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
        """After training, scale the last layer of a model that predicts a number to its unit."""
        if self.task.kind == NUMBER:
            mean, spread = self.scale
            kernel, bias = model.layers[-1].get_weights()
            model.layers[-1].set_weights([kernel * spread, bias * spread + mean])


def _data(task: Task) -> tuple[Any, Any]:
    """Return the data for training and validation, as arrays or as streams of batches."""
    images = task.counts["train"] + task.counts["validation"]
    if images * math.prod(task.image_size) * 3 * 4 <= MEMORY:
        return task.arrays("train", "image", "label"), task.arrays("validation", "image", "label")
    return task.train, task.validation


def class_weights(task: Task) -> dict[int, float]:
    """Return class weights with which every class counts the same in training.

    The average weight of an example is 1. Raises ValueError if the labels are not classes.
    """
    if task.kind != CLASS:
        raise ValueError(
            "Balanced weights are for one class an image; these images have "
            f"{'several labels' if task.kind == LABELS else 'a number'} each: leave them out."
        )
    labels, numbers = task.arrays("train", "label")[0], np.arange(len(task.classes))
    weights = compute_class_weight("balanced", classes=numbers, y=labels)
    return dict(enumerate(weights.tolist()))
