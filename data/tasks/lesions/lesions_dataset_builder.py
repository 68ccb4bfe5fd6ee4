"""Synthetic dermoscopy images with masks and reports, as a TFDS builder; see card.md."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from .cases import CLASSES

MALIGNANT = ("akiec", "bcc", "mel")
SPLITS = {"train": 3600, "validation": 800, "test": 1600}
CHUNK = 16  # images drawn at a time
SEED = 0


@dataclass
class LesionsConfig(tfds.core.BuilderConfig):
    """`size`: pixels per side; `domain`: the camera, a key of `Builder.DOMAINS`."""

    size: int = 64
    domain: str = "dermatoscope"


class Builder(tfds.core.GeneratorBasedBuilder):
    """`tfds.load("lesions/64")` after `import tlkeras.tasks`."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = Path(__file__)  # else TFDS 4.9 looks for it with a package it does not install
    SLOW = "drawing 6,000 images takes up to a minute"
    NOTE = "Synthetic, no medical validity"
    GROUP = "patient"  # the feature that splits must keep together
    DOMAINS = {"dermatoscope": "64", "phone": "64_phone"}
    BUILDER_CONFIGS = [
        LesionsConfig(name="64", description="Through a dermatoscope."),
        LesionsConfig(name="128", description="The same images as 64, finer.", size=128),
        LesionsConfig(name="64_phone", description="Other patients, by phone.", domain="phone"),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        size = self.builder_config.size
        return self.dataset_info_from_configs(
            description=Path(__file__).with_name("card.md").read_text(encoding="utf-8"),
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(size, size, 3)),
                    "label": tfds.features.ClassLabel(names=list(CLASSES)),
                    "malignant": tfds.features.ClassLabel(names=["benign", "malignant"]),
                    "mask": tfds.features.Image(shape=(size, size, 1)),
                    "patient": np.int32,
                    "lesion": np.int32,
                    "report": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):
        return {name: self._generate_examples(name, images) for name, images in SPLITS.items()}

    def _generate_examples(self, split, images):
        from . import cases, render  # imported here, since only drawing needs SciPy

        config = self.builder_config
        seed = [SEED, list(self.DOMAINS).index(config.domain), list(SPLITS).index(split)]
        lesions, views, of_view, reports = cases.draw_cases(seed, config.domain, images)
        first = 100_000 * seed[1] + 10_000 * seed[2]  # so that ids are unique to split and domain

        def draw(start):
            some = slice(start, start + CHUNK)
            lesion = {name: rows[of_view[some]] for name, rows in lesions.items()}
            view = {name: rows[some] for name, rows in views.items()}
            return render.draw(lesion, view, config.size)

        with ThreadPoolExecutor(2) as pool:  # NumPy releases the interpreter lock while it computes
            drawn = pool.map(draw, range(0, images, CHUNK))
            pairs = (pair for chunk in drawn for pair in zip(*chunk, strict=True))
            for number, (image, mask) in enumerate(pairs):
                lesion = int(of_view[number])
                label = int(lesions["label"][lesion])
                yield (
                    f"{number:05d}",
                    {
                        "image": image,
                        "label": label,
                        "malignant": int(CLASSES[label] in MALIGNANT),
                        "mask": mask,
                        "patient": first + int(lesions["patient"][lesion]),
                        "lesion": first + lesion,
                        "report": reports[number],
                    },
                )
