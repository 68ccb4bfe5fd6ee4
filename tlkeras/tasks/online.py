"""Online tasks: known data sets, downloaded on first use, in the online profile only.

Two kinds: data sets of the TFDS catalogue, and MedMNIST v2, whose files hold arrays. Every file
is checked by its hash: TFDS brings those of its own, MedMNIST's are pinned here. Each task has a
stand-in that comes with tlkeras, for work without the internet.
"""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tlkeras.utils import downloads

if TYPE_CHECKING:  # heavy, and of no use to `tlkeras tasks`
    from tlkeras.tasks.builders import Contents

CUTS = {"train": "train[:70%]", "validation": "train[70%:85%]", "test": "train[85%:]"}


@dataclass(frozen=True)
class OnlineTask:
    """A data set that can be downloaded, from MedMNIST if it has `md5`, else through TFDS.

    Attributes:
        name: the task's name.
        summary: what it shows, in a sentence.
        stand_in: the task that comes with tlkeras to use without the internet.
        licence, citation, caution: for the card.
        counts: images in each split, as read.
        size: pixels a side that TFDS's images are read at, unless the caller says otherwise.
        splits: which part of TFDS's splits each split is.
        config: TFDS's configuration, if it has several.
        mirrors: what to ask instead of an address that TFDS knows; if there are any, the files
            at its other addresses are not needed.
        classes: their names, where the files do not say.
        md5: the hash of the file of images with that many pixels a side.
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
    mirrors: dict[str, tuple[str, ...]] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    md5: dict[int, str] = field(default_factory=dict)

    @property
    def source(self) -> str:
        """A page about the data."""
        page = "https://www.tensorflow.org/datasets/catalog/" + self.name
        return "https://medmnist.com" if self.md5 else page

    @property
    def advice(self) -> str:
        """What to use without the internet."""
        return f"Without the internet, tlk.load_task({self.stand_in!r}) stands in for it."

    def card(self) -> str:
        """Where the data come from and what they are good for (Markdown)."""
        counts = ", ".join(f"{split} {count:,}" for split, count in self.counts.items())
        lines = [f"Source: {self.source}", f"Licence: {self.licence}", f"Cite: {self.citation}"]
        lines += [f"Images: {counts}", f"Without the internet `{self.stand_in}` stands in."]
        lines += [f"Caution: {self.caution}"] if self.caution else []
        return "\n".join([f"# {self.name}", "", self.summary, "", *(f"- {x}" for x in lines), ""])


def _cut(total: int) -> dict[str, int]:
    """How many images each of CUTS has."""
    first, second = round(total * 0.7), round(total * 0.85)
    return {"train": first, "validation": second - first, "test": total - second}


_MEDMNIST = "https://zenodo.org/records/10519652/files/{file}?download=1"
_PAPER = "Yang et al., MedMNIST v2, Scientific Data 10:41, 2023, doi:10.1038/s41597-022-01721-8; "
_CLINIC = "for study only, not for clinical use."
# MedMNIST: addresses, hashes, classes, counts and licences as in the package medmnist 3.0.2.
TABLE = [
    OnlineTask(
        "colorectal_histology", "Tissue in colorectal cancer under the microscope, 8 kinds.",
        "lesions", "CC BY 4.0", "Kather et al., Scientific Reports 6:27988, 2016.",
        _cut(5_000), _CLINIC, size=96,
    ),
    OnlineTask(
        "patch_camelyon", "Is there tumour in the middle of a patch of lymph node tissue?",
        "lesions", "CC0 1.0", "Veeling et al., MICCAI 2018, doi:10.1007/978-3-030-00934-2_24.",
        {"train": 20_000, "validation": 4_000, "test": 8_000},
        _CLINIC + " Only a part is read, so figures cannot be set beside published ones.", size=96,
        splits={"train": "train[:20000]", "validation": "validation[:4000]", "test": "test[:8000]"},
    ),
    OnlineTask(
        "malaria", "Single blood cells, with a malaria parasite or without.",
        "lesions", "none named; from the US National Library of Medicine",
        "Rajaraman et al., PeerJ 6:e4568, 2018.", _cut(27_558),
        _CLINIC + " Cells of one patient may be in two splits: TFDS does not say whose they are.",
    ),
    OnlineTask(
        "plant_village", "Leaves of 14 crops, healthy or with one of 26 diseases.",
        "scenes", "CC0 1.0", "Hughes and Salathé, arXiv:1511.08060, 2015.", _cut(54_303),
        "photos of one leaf may be in two splits, and the plain background tells much.",
    ),
    OnlineTask(
        "cats_vs_dogs", "Photos of cats and of dogs.", "scenes",
        "see https://www.microsoft.com/en-us/download/details.aspx?id=54765",
        "Elson et al., Asirra, ACM CCS 2007.", _cut(23_262), size=96,
    ),
    OnlineTask(
        "oxford_iiit_pet", "Photos of 37 breeds of cats and dogs.", "scenes", "CC BY-SA 4.0",
        "Parkhi et al., Cats and Dogs, CVPR 2012.",
        {"train": 3_128, "validation": 552, "test": 3_669}, size=128,
        splits={"train": "train[:85%]", "validation": "train[85%:]", "test": "test"},
    ),
    OnlineTask(
        "eurosat", "Land seen from the satellite Sentinel-2, 10 kinds of use.", "scenes",
        "MIT; the satellite's data under the Copernicus terms",
        "Helber et al., IEEE JSTARS 12(7), 2019.", _cut(27_000), config="rgb",
        mirrors={
            "http://madm.dfki.de/files/sentinel/EuroSAT.zip": (
                "https://madm.dfki.de/files/sentinel/EuroSAT.zip",
                "https://huggingface.co/datasets/torchgeo/eurosat/resolve/"
                "c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
            )
        },
    ),
    OnlineTask(
        "dermamnist", "Pigmented skin lesions under a dermatoscope, 7 kinds.", "lesions",
        "CC BY-NC 4.0 (no commercial use)", _PAPER + "Tschandl et al. (HAM10000), 2018.",
        {"train": 7_007, "validation": 1_003, "test": 2_005},
        _CLINIC + " Photos of one lesion may be in two splits.",
        classes=(
            "actinic keratoses and intraepithelial carcinoma", "basal cell carcinoma",
            "benign keratosis-like lesions", "dermatofibroma", "melanoma", "melanocytic nevi",
            "vascular lesions",
        ),
        md5={
            28: "0744692d530f8e62ec473284d019b0c7", 64: "b70a2f5635c6199aeaa28c31d7202e1f",
            128: "2defd784463fa5243564e855ed717de1", 224: "8974907d8e169bef5f5b96bc506ae45d",
        },
    ),
    OnlineTask(
        "pneumoniamnist", "X-rays of children's chests, healthy or with pneumonia.", "lesions",
        "CC BY 4.0", _PAPER + "Kermany et al., Cell 172(5), 2018.",
        {"train": 4_708, "validation": 524, "test": 624}, _CLINIC,
        classes=("normal", "pneumonia"),
        md5={
            28: "28209eda62fecd6e6a2d98b1501bb15f", 64: "8f4eceb4ccffa70c672198ea285246c6",
            128: "05b46931834c231683c68f40c47b2971", 224: "d6a3c71de1b945ea11211b03746c1fe1",
        },
    ),
    OnlineTask(
        "retinamnist", "The back of the eye, by the grade of diabetic retinopathy, 0 to 4.",
        "lesions", "CC BY 4.0", _PAPER + "Liu et al. (DeepDRiD), Patterns 3(6), 2022.",
        {"train": 1_080, "validation": 120, "test": 400}, _CLINIC,
        classes=("0", "1", "2", "3", "4"),
        md5={
            28: "bd4c0672f1bba3e3a89f0e4e876791e4", 64: "afda852cc34dcda56f86ad2b2457dbcc",
            128: "e48e916a24454daf90583d4e6efb1a18", 224: "eae7e3b6f3fcbda4ae613ebdcbe35348",
        },
    ),
]  # fmt: skip


def names() -> list[str]:
    """Names of the online tasks."""
    return [task.name for task in TABLE]


def load(name: str, cache: Path, size: tuple[int, int] | None, is_online: bool) -> "Contents":
    """An online task, downloaded and prepared if it is not yet.

    Args:
        name: one of `names()`, with `/configuration` after it or not.
        cache: where downloads and prepared tasks are kept.
        size: (height, width) that TFDS's images are read at; None: as the table says.
        is_online: whether downloads are wanted.

    Raises:
        ConnectionError: they are not, or a download failed.
        ValueError: no such configuration, more than fits in memory, or a wrong download.
    """
    name, _, config = name.partition("/")
    task = next(task for task in TABLE if task.name == name)
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


def _load_medmnist(task: OnlineTask, side: int, cache: Path) -> "Contents":
    from tlkeras.tasks.builders import Contents

    _refuse_large(task, (side, side))
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
    report = [f"images as MedMNIST offers them, cut and shrunk to {side}x{side}"]
    return Contents(splits, list(task.classes), task.card(), report)


def _load_tfds(task: OnlineTask, cache: Path, size: tuple[int, int]) -> "Contents":
    import tensorflow_datasets as tfds

    from tlkeras.tasks import builders

    _refuse_large(task, size)

    def open_builder():
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
        except Exception as error:  # of many kinds, with TFDS
            raise ConnectionError(
                f"TFDS could not prepare {task.name}: {' '.join(str(error).split())} Its files "
                f"are in {place}; delete that folder to download them anew. {task.advice}"
            ) from error
        shutil.rmtree(place / "extracted", ignore_errors=True)
    label = builder.info.features["label"]
    stored = builder.info.features["image"].shape[:2]
    was = f"{stored[0]}x{stored[1]}" if all(stored) else "various sizes"
    report = [f"images of {was} read at {size[0]}x{size[1]}"] if stored != size else []
    report.append("splits are of TFDS's: " + ", ".join(f"{k} {v}" for k, v in task.splits.items()))
    splits = {split: _read(builder, part, size) for split, part in task.splits.items()}
    return builders.Contents(splits, label.names, task.card(), report)


def _fetch_archives(builder, task: OnlineTask, place: Path) -> None:
    """Downloads what TFDS would: it sets no timeout, and says little."""
    for url, known in builder.url_infos.items():
        if task.mirrors and url not in task.mirrors:
            continue
        downloads.fetch(
            task.mirrors.get(url, [url]), place / known.filename, f"sha256:{known.checksum}",
            stand_in=task.advice,
        )  # fmt: skip


def _read(builder, part: str, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """A split in memory, image by image: uint8 (n, height, width, 3) and int32 labels (n,)."""
    import tensorflow as tf

    def shrink(image, label):
        image = tf.image.resize(image, size, antialias=True)
        return tf.cast(tf.round(tf.clip_by_value(image, 0, 255)), tf.uint8), label

    data = builder.as_dataset(split=part, as_supervised=True).map(shrink, tf.data.AUTOTUNE)
    images = np.empty((len(data), *size, 3), "uint8")
    labels = np.empty(len(data), "int32")
    for place, (image, label) in enumerate(data.prefetch(64).as_numpy_iterator()):
        images[place], labels[place] = image, label
    return {"image": images, "label": labels}


def _refuse_large(task: OnlineTask, size: tuple[int, int]) -> None:
    from tlkeras.tasks.folders import MEMORY_LIMIT

    total = sum(task.counts.values())
    if total * size[0] * size[1] * 3 > MEMORY_LIMIT:
        raise ValueError(
            f"The {total:,} images of {task.name} at {size[0]}x{size[1]} take more than "
            f"{MEMORY_LIMIT / 2**30:.0f} GiB of memory: choose a smaller image_size."
        )
