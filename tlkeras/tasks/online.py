"""Online tasks: well-known data sets, downloaded on first use, in the online profile only.

They are listed in `data/tasks/online.toml`. There are two kinds: data sets of the TFDS catalogue,
and MedMNIST v2, whose files hold arrays. The hash of every file is checked; TFDS has its own
hashes, those of MedMNIST are in the table. Each task names a task that comes with tlkeras and can
replace it without the internet.
"""

import shutil
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tlkeras.tasks import idx
from tlkeras.tasks.contents import Contents, refuse_large
from tlkeras.utils import downloads, paths

if TYPE_CHECKING:  # slow to import, and not needed by `tlkeras tasks`
    import tensorflow_datasets as tfds

CUTS = {"train": "train[:70%]", "validation": "train[70%:85%]", "test": "train[85%:]"}


@dataclass(frozen=True)
class OnlineTask:
    """A data set that can be downloaded, from MedMNIST if it has `md5`, else through TFDS.

    Attributes:
        name: name of the task.
        summary: one sentence on what the images show.
        stand_in: the task that comes with tlkeras to use without the internet.
        licence, citation, caution: texts for the card.
        counts: number of images in each split.
        size: pixels per side to which images from TFDS are resized, unless the caller says
            otherwise.
        splits: the part of TFDS's splits that makes each split.
        config: the TFDS configuration, if there are several.
        mirrors: {address that TFDS knows: addresses to use instead}. If not empty, files at TFDS's
            other addresses are not needed.
        classes: names of the classes, if the files do not contain them.
        idx: `idx.digest` of the training and test part, for data sets that can also be read from
            IDX files in the folder for prepared tasks.
        md5: {pixels per side: hash of the file with images of that size}.
    """

    name: str
    summary: str
    stand_in: str
    licence: str
    citation: str
    counts: dict[str, int]
    caution: str = ""
    size: int = 64
    splits: dict[str, str] = field(default_factory=lambda: CUTS)
    config: str = ""
    mirrors: dict[str, list[str]] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    idx: dict[str, str] = field(default_factory=dict)
    md5: dict[int, str] = field(default_factory=dict)

    @property
    def advice(self) -> str:
        """A sentence on what to use without the internet."""
        local = " Its IDX files can be read from a folder: give it as data_dir." if self.idx else ""
        return f"Without the internet, tlk.load_task({self.stand_in!r}) stands in for it.{local}"

    def card(self) -> str:
        """Return the card: where the data come from and what they contain (Markdown)."""
        counts = ", ".join(f"{split} {count:,}" for split, count in self.counts.items())
        catalog = f"https://www.tensorflow.org/datasets/catalog/{self.name}"
        source = "https://medmnist.com" if self.md5 else catalog
        lines = [f"Source: {source}", f"Licence: {self.licence}", f"Cite: {self.citation}"]
        lines += [f"Images: {counts}", f"Without the internet `{self.stand_in}` stands in."]
        lines += [f"Caution: {self.caution}"] if self.caution else []
        return "\n".join([f"# {self.name}", "", self.summary, "", *(f"- {x}" for x in lines), ""])


def _read_table() -> list[OnlineTask]:
    """Return the tasks of `data/tasks/online.toml`, in its order."""
    with (paths.data_root() / "tasks" / "online.toml").open("rb") as file:
        entries = tomllib.load(file)
    for entry in entries.values():
        entry["md5"] = {int(side): md5 for side, md5 in entry.get("md5", {}).items()}
    return [OnlineTask(name, **entry) for name, entry in entries.items()]


TABLE = _read_table()
_MEDMNIST = "https://zenodo.org/records/10519652/files/{file}?download=1"


def names() -> list[str]:
    """Return the names of the online tasks."""
    return [task.name for task in TABLE]


def load(name: str, cache: Path, size: tuple[int, int] | None, is_online: bool) -> Contents:
    """Load an online task; download and prepare it first if necessary.

    Args:
        name: one of `names()`, optionally followed by `/configuration`.
        cache: folder for downloads and prepared tasks. If it holds the IDX files of the task, they
            are read and nothing is downloaded.
        size: (height, width) to which images from TFDS are resized. None: as the table says.
        is_online: whether downloads are allowed.

    Raises:
        ConnectionError: downloads are not allowed, or one failed.
        ValueError: the configuration does not exist, or the images do not fit in memory.
    """
    name, _, config = name.partition("/")
    task = next(task for task in TABLE if task.name == name)
    if task.idx and idx.are_in(cache):
        return _load_idx(task, cache)
    if not is_online:
        raise ConnectionError(
            f"{name!r} is an online task and the profile is offline: set TLKERAS_PROFILE=online, "
            f"or give load_task profile='online'. {task.advice}"
        )
    configs = [str(side) for side in task.md5] or [task.config] * bool(task.config)
    if config and config not in configs:
        has = f"the configurations {configs}" if configs else "no configurations"
        raise ValueError(f"{name} has {has}, not {config!r}.")
    if task.md5:
        return _load_medmnist(task, int(config or configs[0]), cache)
    return _load_tfds(task, cache, size or (task.size, task.size))


def _load_idx(task: OnlineTask, folder: Path) -> Contents:
    """Load a task from IDX files, without TFDS; the last training images become validation data."""
    parts = {part: idx.examples(folder, begins) for part, begins in idx.PARTS.items()}
    for part, found in parts.items():
        if idx.digest(*found) != task.idx[part]:
            raise ValueError(
                f"The {part} images and labels in {folder} are not those of {task.name}: other "
                "data sets have files of these names, too. Get both files again."
            )
    (images, labels), (test_images, test_labels) = parts["train"], parts["test"]
    count = task.counts["train"]
    splits = {
        "train": {"image": images[:count], "label": labels[:count]},
        "validation": {"image": images[count:], "label": labels[count:]},
        "test": {"image": test_images, "label": test_labels},
    }
    report = (f"read from the IDX files in {folder}",)
    return Contents(splits, tuple(task.classes), task.card(), report)


def _load_medmnist(task: OnlineTask, side: int, cache: Path) -> Contents:
    refuse_large(sum(task.counts.values()), (side, side))
    file = task.name + ("" if side == 28 else f"_{side}") + ".npz"
    path = downloads.fetch(
        [_MEDMNIST.format(file=file)],
        cache / "downloads" / task.name / file,
        f"md5:{task.md5[side]}",
        stand_in=task.advice,
    )
    splits = {}
    with np.load(path, allow_pickle=False) as arrays:
        for split, short in (("train", "train"), ("validation", "val"), ("test", "test")):
            images = arrays[f"{short}_images"]
            if images.ndim == 3:
                images = np.repeat(images[..., None], 3, axis=-1)
            labels = arrays[f"{short}_labels"].astype("int32").reshape(len(images))
            splits[split] = {"image": images, "label": labels}
    report = (f"images as MedMNIST offers them, cut and shrunk to {side}x{side}",)
    return Contents(splits, tuple(task.classes), task.card(), report)


def _load_tfds(task: OnlineTask, cache: Path, size: tuple[int, int]) -> Contents:
    import tensorflow_datasets as tfds

    from tlkeras.tasks import builders

    refuse_large(sum(task.counts.values()), size)

    def open_builder() -> "tfds.core.DatasetBuilder":
        return tfds.builder(f"{task.name}/{task.config}".rstrip("/"), data_dir=cache)

    builder = open_builder()
    if not builder.data_path.exists():
        place = cache / "downloads" / task.name
        _fetch_archives(builder, task, place)
        options = tfds.download.DownloadConfig(manual_dir=place, try_download_gcs=False)
        try:
            builder = builders.prepared(
                open_builder, cache, task.name, "unpacking takes minutes",
                download_dir=place, download_config=options,
            )  # fmt: skip
        except Exception as error:  # TFDS raises many types
            raise ConnectionError(
                f"TFDS could not prepare {task.name}: {' '.join(str(error).split())} Its files "
                f"are in {place}; delete that folder to download them again. {task.advice}"
            ) from error
        shutil.rmtree(place / "extracted", ignore_errors=True)
    label = builder.info.features["label"]
    stored = builder.info.features["image"].shape[:2]
    was = f"{stored[0]}x{stored[1]}" if all(stored) else "various sizes"
    report = [f"images of {was} read at {size[0]}x{size[1]}"] if stored != size else []
    report.append("splits of TFDS: " + ", ".join(f"{k} {v}" for k, v in task.splits.items()))
    splits = {split: _read(builder, part, size) for split, part in task.splits.items()}
    return Contents(splits, tuple(label.names), task.card(), tuple(report))


def _fetch_archives(builder: "tfds.core.DatasetBuilder", task: OnlineTask, place: Path) -> None:
    """Download the files in place of TFDS, which sets no timeout and reports little."""
    for url, known in builder.url_infos.items():
        if task.mirrors and url not in task.mirrors:
            continue
        downloads.fetch(
            task.mirrors.get(url, [url]), place / known.filename, f"sha256:{known.checksum}",
            stand_in=task.advice,
        )  # fmt: skip


def _read(
    builder: "tfds.core.DatasetBuilder", part: str, size: tuple[int, int]
) -> dict[str, np.ndarray]:
    """Read a split into memory: images, uint8 (n, height, width, 3), and int32 labels (n,)."""
    import tensorflow as tf

    def shrink(image: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image = tf.image.resize(image, size, antialias=True)
        return tf.cast(tf.round(tf.clip_by_value(image, 0, 255)), tf.uint8), label

    data = builder.as_dataset(split=part, as_supervised=True).map(shrink, tf.data.AUTOTUNE)
    images = np.empty((len(data), *size, 3), "uint8")
    labels = np.empty(len(data), "int32")
    for place, (image, label) in enumerate(data.prefetch(64).as_numpy_iterator()):
        images[place], labels[place] = image, label
    return {"image": images, "label": labels}
