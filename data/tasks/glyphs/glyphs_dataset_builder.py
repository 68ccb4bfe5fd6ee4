"""Printed letters drawn from matplotlib's fonts, as a TFDS builder; see card.md."""

from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

SIZE = 32  # pixels
PER_CLASS = {"train": 60, "validation": 10, "test": 10}
SEED = 0
# What render.letters() finds (a test holds the two together), kept so that loading need not look.
LETTERS = "".join(Path(__file__).with_name("letters.txt").read_text(encoding="utf-8").split())


class Builder(tfds.core.GeneratorBasedBuilder):
    """`tfds.load("glyphs/letters")` after `import tlkeras.tasks`."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = Path(__file__)  # TFDS 4.9 needs a package it does not require to find it itself
    SLOW = "drawing 37,000 images takes about a minute"
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name="letters", description="All letters, no digits.")
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description=Path(__file__).with_name("card.md").read_text(encoding="utf-8"),
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(SIZE, SIZE, 3)),
                    "label": tfds.features.ClassLabel(names=list(LETTERS)),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):
        from . import render

        source = render.glyphs(tuple(LETTERS))
        return {
            name: self._generate_examples(source, number, per_class)
            for number, (name, per_class) in enumerate(PER_CLASS.items())
        }

    def _generate_examples(self, source, split, per_class):
        from . import render

        rng = np.random.default_rng([SEED, split])
        for label in range(len(source.classes)):
            chosen = rng.choice(np.flatnonzero(source.labels == label), per_class)
            images = render.draw(source, chosen, rng, SIZE)
            for number, image in enumerate(images):
                yield f"{label:04d}-{number:03d}", {"image": image, "label": label}
