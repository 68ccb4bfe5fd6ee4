"""The Task that `load_task` returns: labelled images in fixed train, validation and test splits."""

import math
import weakref
from dataclasses import dataclass, field, replace
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from tlkeras.tasks.contents import CLASS, LABELS, NUMBER, SPLITS, Contents, sides
from tlkeras.tasks.decoding import Images
from tlkeras.tasks.finding import listed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHUNK = 256  # images converted at a time
ARRAY_LIMIT = 16 * 2**30  # bytes


@dataclass(frozen=True, repr=False, kw_only=True)
class Task(Contents):
    """Images and labels in fixed splits; made by `load_task`.

    Attributes:
        name: name of the task, or of the folder.
        train, validation, test: `tf.data.Dataset` of (float32 RGB in [0, 255], shape
            (batch, height, width, 3); labels). `train` is reshuffled each epoch, in an order that
            the seed determines. `test` is None for a folder without one.
        classes: names of the classes; for a number to be predicted, its name.
        image_size: (height, width) in pixels.
        card: where the data come from and what they are good for (Markdown).
        report: lines on what was done to the files of a folder or a download.
        note: what a reader must know, such as "Synthetic"; "" for real data. It is in the title
            of every figure drawn from the task.
        domain: the domain of the images, for tasks with several domains; else None.
        group: a feature, such as the patient, none of whose values is in two splits; else None.
        kind: the kind of labels. "class": an index into `classes`, int32 (batch,). "labels":
            several of them, float32 rows of 0 and 1 (batch, classes). "number": float32 (batch,).
            `tlkeras.tasks.targets.FitInputs` has the matching loss and metrics.
        start: the bundled network to start from, as the card says.
        white: the value that became 255 in files of more than 8 bits per channel.
        batch_size, seed: batch size of all three splits, and seed of the order of `train`.
    """

    name: str
    image_size: tuple[int, int]
    batch_size: int
    seed: int
    train: tf.data.Dataset = field(init=False)
    validation: tf.data.Dataset = field(init=False)
    test: tf.data.Dataset | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        for split in SPLITS:
            if split in self.splits:
                seed = self.seed if split == "train" else None
                data = stream(self.splits[split], self.image_size, self.batch_size, seed)
                object.__setattr__(self, split, data)

    @property
    def counts(self) -> dict[str, int]:
        """Number of images in each split, also in those only `arrays` gives, such as "held_out"."""
        return {split: len(stored["label"]) for split, stored in self.splits.items()}

    def resized(self, image_size: int | tuple[int, int]) -> "Task":
        """Return the same task with images of another size: pixels per side, or (height, width).

        >>> tlk.load_task("digits").resized(64).image_size
        (64, 64)
        """
        return replace(self, image_size=sides(image_size))

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features that `arrays` can return: "image", "label", in some tasks more."""
        return tuple(self.splits["train"])

    def arrays(self, split: str = "train", *features: str) -> tuple[np.ndarray, ...]:
        """Return features of a split as arrays, by default the images and their labels.

        The order is always the same, so arrays of one split belong together. `train` contains only
        the labelled examples that were kept.

        Args:
            split: a key of `counts`.
            features: names from `self.features`.

        Returns:
            One array for each feature, n examples long. "image": float32 (n, height, width, 3) in
            [0, 255]; class labels: int32 (n,); text: str (n,); other uint8 images, such as masks:
            uint8 (n, height, width, channels), resized by the nearest pixel. Other features are
            returned as stored; images from a folder have "file", the path of each.

        Raises:
            ValueError: the task has no such split or feature, or an array takes more than 16 GiB.

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
        """Draw a grid of images of a split with their labels, from as many classes as fit.

        Raises ValueError if the task has no such split.

        >>> figure = tlk.load_task("digits").show(rows=1, columns=4)
        >>> [axis.get_title() for axis in figure.axes]
        ['0', '1', '2', '3']
        """
        from tlkeras.display import plots

        stored = self._split(split)
        labels, count = stored["label"], rows * columns
        chosen = _spread(labels, count) if self.kind == CLASS else np.arange(len(labels))[:count]
        images = _converted("image", stored["image"][chosen], self.image_size)
        title = f"{self._full_name()}: {split}" + (f" ({self.note})" if self.note else "")
        names = [self._named(label) for label in labels[chosen]]
        return plots.samples(images, np.arange(len(names)), names, columns, title)

    def _named(self, label: Any) -> str:
        """Return a label as text."""
        if self.kind == LABELS:
            return ", ".join(self.classes[i] for i in np.flatnonzero(label)) or "none"
        return f"{label:.4g}" if self.kind == NUMBER else self.classes[label]

    def _split(self, split: str) -> dict[str, Any]:
        if split not in self.splits:
            raise ValueError(f"{self.name} has the splits {list(self.splits)}, not {split!r}.")
        return self.splits[split]

    def _full_name(self) -> str:
        return f"{self.name}, {self.domain}" if self.domain else self.name

    def __repr__(self) -> str:
        height, width = self.image_size
        counts = ", ".join(f"{split} {count:,}" for split, count in self.counts.items())
        note = f"; {self.note}" if self.note else ""
        what = f"the number {self.classes[0]!r}"
        if self.kind != NUMBER:
            what = f"{len(self.classes)} {'classes' if self.kind == CLASS else 'labels'}"
        return f"Task({self._full_name()}: {what}, {height}x{width}, {counts}{note})"

    def _repr_html_(self) -> str:
        lines = [repr(self), "classes: " + listed(self.classes), *self.report]
        return "<br>".join(escape(line) for line in lines)


def stream(
    stored: dict[str, Any], size: tuple[int, int], batch_size: int, seed: int | None = None
) -> tf.data.Dataset:
    """Return batches of (float32 images resized to `size`, labels), shuffled if seed is given."""
    with tf.device("CPU:0"):
        labels = tf.constant(stored["label"])
    images = stored["image"]
    known = weakref.ref(images)  # TensorFlow never frees a function, which must not hold the images

    def read(index: np.ndarray) -> np.ndarray:
        held = known()
        assert held is not None  # `data.images` below keeps them alive
        return held[index]

    def fetch(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        pixels = tf.numpy_function(read, [index], tf.uint8)  # a tensor of all images is a copy
        pixels.set_shape((None, *images.shape[1:]))
        return _as_input(pixels, size), tf.gather(labels, index)

    order = tf.data.Dataset.range(len(labels))
    if seed is not None:
        order = order.shuffle(len(labels), seed=seed, reshuffle_each_iteration=True)
    data = order.batch(batch_size).map(fetch, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
    data.images = images  # keeps the images alive as long as this dataset or one made from it
    return data


def _as_input(images: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    images = tf.cast(images, tf.float32)
    if tuple(images.shape[1:3]) != tuple(size):
        images = tf.image.resize(images, size, antialias=True)
    return images


def _converted(name: str, array: Images, size: tuple[int, int]) -> np.ndarray:
    """Return a copy of a feature in the form that `Task.arrays` returns."""
    if isinstance(array, np.ndarray) and (array.ndim != 4 or array.dtype != "uint8"):
        return array.copy()
    shape = (len(array), *size, array.shape[3])
    if math.prod(shape) * 4 > ARRAY_LIMIT:
        raise ValueError(
            f"{len(array):,} images of {size[0]}x{size[1]} as floats take more than "
            f"{ARRAY_LIMIT / 2**30:.0f} GiB: read them in batches, from task.train for instance."
        )
    out = np.empty(shape, "float32" if name == "image" else "uint8")
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
    """Return indices of `count` examples, one of every class before a second, sorted by class."""
    order = np.argsort(labels, kind="stable")
    _, starts, inverse = np.unique(labels[order], return_index=True, return_inverse=True)
    occurrence = np.arange(len(labels)) - starts[inverse]
    chosen = order[np.argsort(occurrence, kind="stable")[:count]]
    return chosen[np.argsort(labels[chosen], kind="stable")]
