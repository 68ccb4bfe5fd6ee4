"""Coloured, textured shapes with captions, as a TFDS builder; see card.md."""

from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

SIZE = 64  # pixels
SPLITS = {"train": 6_000, "validation": 1_000, "test": 1_600, "held_out": 800}
SEED = 0
STYLES = {
    "plain": "Blurred grounds, full colour.",
    "exotic": "A third each of the three styles below.",
    "sketch": "Pencil outlines on paper.",
    "inverted": "Photographic negatives.",
    "noisy": "Half the contrast, and strong grain.",
}


class Builder(tfds.core.GeneratorBasedBuilder):
    """`tfds.load("scenes/plain")` after `import tlkeras.tasks`."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = Path(__file__)  # else TFDS 4.9 looks for it with a package it does not install
    NOTE = "Synthetic"
    DOMAINS = {style: style for style in STYLES}
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name=name, description=text) for name, text in STYLES.items()
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        from . import render

        def names(table):
            return tfds.features.ClassLabel(names=list(table))

        return self.dataset_info_from_configs(
            description=Path(__file__).with_name("card.md").read_text(encoding="utf-8"),
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(SIZE, SIZE, 3)),
                    "label": names(render.SHAPES),
                    "colour": names(render.COLOURS),
                    "texture": names(render.TEXTURES),
                    "size": names(render.SIZES),
                    "position": names(render.POSITIONS),
                    "caption": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):
        return {
            name: self._generate_examples(number, name, count)
            for number, (name, count) in enumerate(SPLITS.items())
        }

    def _generate_examples(self, number, split, count):
        from . import render

        style = self.builder_config.name
        rng = np.random.default_rng([SEED, number, list(STYLES).index(style)])
        scenes = render.sample(count, rng, held_out=split == "held_out")
        for start in range(0, count, 50):
            batch = scenes[start : start + 50]
            for place, image in enumerate(render.draw(batch, rng, SIZE, style)):
                one = batch[place]
                yield (
                    f"{start + place:05d}",
                    {
                        "image": image,
                        "label": int(one.shape),
                        "colour": int(one.colour),
                        "texture": int(one.texture),
                        "size": int(one.size),
                        "position": int(one.position),
                        "caption": render.caption(one, rng),
                    },
                )
