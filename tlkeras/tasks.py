"""Tasks: labelled images with a fixed training, validation and test split.

`load_task` is the one way in, for the tasks that come with tlkeras (TFDS builders under
`data/tasks/`, prepared on first use without the internet) and for a folder of your own images.
Importing this module also makes the builders known to TFDS:

    import tensorflow_datasets as tfds
    import tlkeras.tasks
    tfds.load("digits", split="train", as_supervised=True)
"""

import difflib
import importlib.util
import io
import os
import shutil
import sys
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from tlkeras import folders, paths

SPLITS = ("train", "validation", "test")


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
        counts: images in each split.
        card: where the data come from and what they are good for (Markdown).
        report: what was done to the files of a folder, a line each.
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
    _stored: dict = field(default_factory=dict)

    def arrays(self, split: str = "train") -> tuple[np.ndarray, np.ndarray]:
        """A split in memory: float32 images (n, height, width, 3) in [0, 255], int32 labels (n,).

        Always in the same order, and `train` only with the labels chosen.

        Raises:
            ValueError: the task has no such split.
        """
        if split not in self._stored:
            raise ValueError(f"{self.name} has the splits {list(self._stored)}, not {split!r}.")
        x, y = self._stored[split]
        batches = _stream(x, y, self.image_size, batch_size=256)
        return np.concatenate([images for images, _ in batches.as_numpy_iterator()]), y.copy()

    def __repr__(self) -> str:
        height, width = self.image_size
        counts = ", ".join(f"{split} {count:,}" for split, count in self.counts.items())
        return f"Task({self.name}: {len(self.classes)} classes, {height}x{width}, {counts})"

    def _repr_html_(self) -> str:
        lines = [repr(self), "classes: " + _shorten(self.classes), *self.report]
        return "<br>".join(escape(line) for line in lines)


def list_tasks() -> list[str]:
    """Names of the tasks that come with tlkeras."""
    return [folder.name for folder in paths.tasks()]


def load_task(
    name_or_folder: str | os.PathLike,
    labels_per_class: int | None = None,
    seed: int = 0,
    image_size: int | tuple[int, int] | None = None,
    batch_size: int = 32,
    data_dir: str | os.PathLike | None = None,
) -> Task:
    """Loads a task by name, or from a folder of images.

    Args:
        name_or_folder: one of `list_tasks()` (with `/config` after it where a task has several),
            or a folder with one folder of images for each class, or with `train/`, `validation/`
            and `test/` laid out that way (see `tlkeras.folders.read_folder`). A task's name wins
            over a folder of the same name; write `./digits` for the folder.
        labels_per_class: keep that many training images of each class, drawn by `seed`.
            Validation and test stay whole. None keeps all.
        seed: fixes which labels are kept and the order of training. It does not move an image
            from one split to another, so runs with different seeds share their test images.
        image_size: pixels a side, or (height, width). None: as the images are.
        batch_size: images in a batch.
        data_dir: where prepared tasks are kept, before the environment variable TLKERAS_DATA_DIR
            and the user's cache folder.

    Raises:
        ValueError: no such task; more labels asked for than there are; files that are no images.
        FileNotFoundError: no such folder.
    """
    size = _pair(image_size)
    name = str(name_or_folder)
    if name.partition("/")[0] in list_tasks():
        splits, classes, card = _read_builder(name, paths.cache_dir(data_dir))
        report = ()
    elif Path(name).is_dir() or not _could_be_a_name(name):
        splits, classes, report = folders.read_folder(Path(name), size)
        name, card = Path(name).resolve().name, folders.card(Path(name), splits, classes, report)
    else:
        raise ValueError(_unknown(name))
    if labels_per_class is not None:
        splits = splits | {"train": _draw(*splits["train"], classes, labels_per_class, seed)}
    size = size or splits["train"][0].shape[1:3]
    streams = {
        split: _stream(*pair, size, batch_size, seed if split == "train" else None)
        for split, pair in splits.items()
    }
    counts = {split: len(labels) for split, (_, labels) in splits.items()}
    return Task(
        name, streams["train"], streams["validation"], streams.get("test"),
        tuple(classes), tuple(size), counts, card, tuple(report), splits,
    )  # fmt: skip


def _stream(x, y, size, batch_size, seed=None) -> tf.data.Dataset:
    """Batches of (float32 images resized to `size`, labels), shuffled if there is a seed."""
    with tf.device("CPU:0"):
        images, labels = tf.constant(x), tf.constant(y)

    def fetch(index):
        batch = tf.cast(tf.gather(images, index), tf.float32)
        if tuple(size) != x.shape[1:3]:
            batch = tf.image.resize(batch, size, antialias=True)
        return batch, tf.gather(labels, index)

    order = tf.data.Dataset.range(len(y))
    if seed is not None:
        order = order.shuffle(len(y), seed=seed, reshuffle_each_iteration=True)
    return order.batch(batch_size).map(fetch, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def _draw(x, y, classes, count, seed):
    """`count` images of each class, drawn by `seed`, in the order they had."""
    if count < 1:
        raise ValueError(f"labels_per_class must be at least 1, not {count}.")
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(y == label) for label in range(len(classes))]
    fewest = min(range(len(classes)), key=lambda label: len(members[label]))
    if len(members[fewest]) < count:
        raise ValueError(
            f"labels_per_class={count}, but class {classes[fewest]!r} has "
            f"{len(members[fewest])} training images: ask for at most that many."
        )
    kept = np.sort(np.concatenate([rng.choice(m, count, replace=False) for m in members]))
    return x[kept], y[kept]


def _read_builder(name: str, cache: Path) -> tuple[dict, list[str], str]:
    """Splits (uint8 images, int32 labels), class names and card of a builder's task."""
    name, _, config = name.partition("/")
    builder_class = _builder_class(name)
    configs = list(builder_class.builder_configs)
    if config and config not in configs:
        raise ValueError(f"{name} has the configurations {configs}, not {config!r}.")

    def open_builder():
        return builder_class(config=config or None, data_dir=cache)

    builder = open_builder()
    if not builder.data_path.exists():
        _prepare(open_builder, cache, name)
        builder = open_builder()  # reads what is there now
    splits = {}
    for split in SPLITS:
        stored = builder.as_dataset(split=split, batch_size=-1, as_supervised=True)
        images, labels = (part.numpy() for part in stored)
        splits[split] = images, labels.astype("int32")
    return splits, builder.info.features["label"].names, builder.info.description


def _prepare(open_builder, cache: Path, name: str) -> None:
    """Generates a task's files, once: other processes wait, and a kill leaves nothing half done.

    TFDS writes to a folder of its own and renames it at the end; what killed processes left
    behind is removed here, where no other process can be writing.
    """
    cache.mkdir(parents=True, exist_ok=True)
    with _lock(cache / f"{name}.lock"):
        builder = open_builder()
        if builder.data_path.exists():
            return
        for leftover in Path(builder.data_path).parent.glob("*incomplete*"):
            shutil.rmtree(leftover, ignore_errors=True)
        if getattr(builder, "SLOW", None):
            print(f"Preparing {name} in {cache}, once: {builder.SLOW}.", file=sys.stderr)
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            builder.download_and_prepare()


@contextmanager
def _lock(path: Path):
    """Holds the file for this process alone; the system lets go of it when the process ends."""
    with path.open("w") as file:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _builder_class(name: str) -> type:
    return importlib.import_module(f"tlkeras_tasks.{name}.{name}_dataset_builder").Builder


def _register() -> None:
    """Makes `data/tasks/` the package `tlkeras_tasks`, wherever it is, and its builders known."""
    root = paths.data_root() / "tasks"
    spec = importlib.util.spec_from_file_location(
        "tlkeras_tasks", root / "__init__.py", submodule_search_locations=[str(root)]
    )
    sys.modules["tlkeras_tasks"] = importlib.util.module_from_spec(spec)
    for name in list_tasks():
        assert issubclass(_builder_class(name), tfds.core.DatasetBuilder)


def _pair(image_size) -> tuple[int, int] | None:
    if image_size is None:
        return None
    pair = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise ValueError(
            f"image_size must be pixels a side or (height, width), not {image_size!r}."
        )
    return pair


def _could_be_a_name(name: str) -> bool:
    return not name.startswith((".", "~")) and "/" not in name and os.sep not in name


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, list_tasks(), n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return (
        f"No task and no folder is called {name!r}.{hint} "
        f"Tasks: {', '.join(list_tasks())}. Or give a folder with one folder of images a class."
    )


def _shorten(names: tuple[str, ...], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


_register()
