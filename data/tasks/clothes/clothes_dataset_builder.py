"""Real product photographs from Fashion-MNIST, as a TFDS builder; see card.md."""

from pathlib import Path

import tensorflow_datasets as tfds

from tlkeras.tasks import idx

HERE = Path(__file__).parent
SIZE = 28  # pixels per side
CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
SPLITS = ("train", "validation", "test")


class Builder(tfds.core.GeneratorBasedBuilder):
    """`tfds.load("clothes")` after `import tlkeras.tasks`."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = Path(__file__)  # else TFDS 4.9 looks for it with a package it does not install

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description=(HERE / "card.md").read_text(encoding="utf-8"),
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(SIZE, SIZE, 3)),
                    "label": tfds.features.ClassLabel(names=list(CLASSES)),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://github.com/zalandoresearch/fashion-mnist",
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split):
        images, labels = idx.examples(HERE, split)
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield f"{number:04d}", {"image": image, "label": int(label)}
