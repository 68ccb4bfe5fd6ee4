"""What `load_task` returns: labelled images with a fixed training, validation and test split."""

from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHUNK = 256  # images converted at a time


@dataclass(frozen=True, repr=False)
class Task:
    """Images and labels, split for good; made by `load_task`.

    Attributes:
        name: the task's name, or the folder's.
        train, validation, test: `tf.data.Dataset` of (float32 RGB in [0, 255], shape
            (batch, height, width, 3); int32 labels, shape (batch,)). `train` is shuffled anew
            each epoch, in an order that the seed fixes. `test` is None for a folder without one.
        classes: their names; a label is an index into them.
        image_size: (height, width) in pixels.
        counts: images in each split; also in those that only `arrays` gives, such as "held_out".
        card: where the data come from and what they are good for (Markdown).
        report: what was done to the files of a folder or of a download, a line each.
        note: what a reader must know, such as "Synthetic"; "" for real data. It is in the title
            of every figure drawn from the task.
        domain: how the classes are seen here, for tasks with several domains; else None.
        group: the feature (a patient, say) none of whose values is in two splits; else None.
    """

    name: str
    train: tf.data.Dataset
    validation: tf.data.Dataset
    test: tf.data.Dataset | None
    classes: tuple[str, ...]
    image_size: tuple[int, int]
    counts: dict[str, int]
    card: str
    report: tuple[str, ...] = ()
    note: str = ""
    domain: str | None = None
    group: str | None = None
    _stored: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)

    @property
    def features(self) -> tuple[str, ...]:
        """What `arrays` can give of each example: "image", "label", and more in some tasks."""
        return tuple(self._stored["train"])

    def arrays(self, split: str = "train", *features: str) -> tuple[np.ndarray, ...]:
        """Features of a split in memory, by default the images and their labels.

        Always in the same order, so arrays of one split belong together; `train` has only the
        labels chosen.

        Args:
            split: a key of `counts`.
            features: names out of `self.features`.

        Returns:
            An array for each feature, n examples long. "image": float32 (n, height, width, 3) in
            [0, 255]; class labels: int32 (n,); text: str (n,); another uint8 picture, such as a
            mask: uint8 (n, height, width, channels), resized to the nearest pixel. The rest as
            it is stored.

        Raises:
            ValueError: the task has no such split or feature.

        >>> images, labels = tlk.load_task("digits").arrays("test")
        >>> images.shape, labels.shape
        ((800, 32, 32, 3), (800,))
        """
        stored = self._split(split)
        for name in features:
            if name not in stored:
                raise ValueError(f"{self.name} has the features {list(stored)}, not {name!r}.")
        return tuple(
            _converted(name, stored[name], self.image_size) for name in features or list(stored)[:2]
        )

    def show(self, split: str = "train", rows: int = 3, columns: int = 8) -> "Figure":
        """A grid of images of a split with their classes, of as many classes as fit.

        Raises ValueError if the task has no such split.

        >>> figure = tlk.load_task("digits").show(rows=1, columns=4)
        >>> [axis.get_title() for axis in figure.axes]
        ['0', '1', '2', '3']
        """
        from tlkeras.display import plots

        stored = self._split(split)
        chosen = _spread(stored["label"], rows * columns)
        images = _converted("image", stored["image"][chosen], self.image_size)
        title = f"{self._full_name()}: {split}" + (f" ({self.note})" if self.note else "")
        return plots.samples(images, stored["label"][chosen], self.classes, columns, title)

    def _split(self, split: str) -> dict[str, np.ndarray]:
        if split not in self._stored:
            raise ValueError(f"{self.name} has the splits {list(self._stored)}, not {split!r}.")
        return self._stored[split]

    def _full_name(self) -> str:
        return f"{self.name}, {self.domain}" if self.domain else self.name

    def __repr__(self) -> str:
        height, width = self.image_size
        counts = ", ".join(f"{split} {count:,}" for split, count in self.counts.items())
        note = f"; {self.note}" if self.note else ""
        return (
            f"Task({self._full_name()}: {len(self.classes)} classes, {height}x{width}, "
            f"{counts}{note})"
        )

    def _repr_html_(self) -> str:
        lines = [repr(self), "classes: " + _shorten(self.classes), *self.report]
        return "<br>".join(escape(line) for line in lines)


def stream(
    stored: dict[str, np.ndarray], size: tuple[int, int], batch_size: int, seed: int | None = None
) -> tf.data.Dataset:
    """Batches of (float32 images resized to `size`, labels), shuffled if there is a seed."""
    with tf.device("CPU:0"):
        images, labels = tf.constant(stored["image"]), tf.constant(stored["label"])

    def fetch(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return _as_input(tf.gather(images, index), size), tf.gather(labels, index)

    order = tf.data.Dataset.range(len(labels))
    if seed is not None:
        order = order.shuffle(len(labels), seed=seed, reshuffle_each_iteration=True)
    return order.batch(batch_size).map(fetch, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def _as_input(images: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    images = tf.cast(images, tf.float32)
    if tuple(images.shape[1:3]) != tuple(size):
        images = tf.image.resize(images, size, antialias=True)
    return images


def _converted(name: str, array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A feature as `Task.arrays` gives it, in memory of its own."""
    if array.ndim != 4 or array.dtype != "uint8":
        return array.copy()
    out = np.empty((len(array), *size, array.shape[3]), "float32" if name == "image" else "uint8")
    with tf.device("CPU:0"):
        for start in range(0, len(array), CHUNK):
            part = array[start : start + CHUNK]
            if name == "image":
                part = _as_input(part, size)
            elif part.shape[1:3] != tuple(size):
                part = tf.image.resize(part, size, "nearest")
            out[start : start + CHUNK] = part
    return out


def _spread(labels: np.ndarray, count: int) -> np.ndarray:
    """Places of `count` examples, a first of every class before a second, ordered by class."""
    order = np.argsort(labels, kind="stable")
    _, starts, inverse = np.unique(labels[order], return_index=True, return_inverse=True)
    occurrence = np.arange(len(labels)) - starts[inverse]
    chosen = order[np.argsort(occurrence, kind="stable")[:count]]
    return chosen[np.argsort(labels[chosen], kind="stable")]


def _shorten(names: tuple[str, ...], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
