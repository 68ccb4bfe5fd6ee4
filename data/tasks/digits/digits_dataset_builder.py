"""Real handwritten digits from scikit-learn, as a TFDS builder; see card.md."""

from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

SIZE = 32  # pixels per side, enlarged from 8
SPLITS = {"train": 797, "validation": 200, "test": 800}
SEED = 0


class Builder(tfds.core.GeneratorBasedBuilder):
    """`tfds.load("digits")` after `import tlkeras.tasks`."""

    VERSION = tfds.core.Version("1.0.0")
    START = "glyph_resnet"
    code_path = Path(__file__)  # else TFDS 4.9 looks for it with a package it does not install

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description=Path(__file__).with_name("card.md").read_text(encoding="utf-8"),
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(SIZE, SIZE, 3)),
                    "label": tfds.features.ClassLabel(names=list("0123456789")),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://doi.org/10.24432/C50P49",
        )

    def _split_generators(self, dl_manager):
        images, labels = _digits()
        return {
            name: self._generate_examples(images, labels, chosen)
            for name, chosen in _split(labels).items()
        }

    def _generate_examples(self, images, labels, chosen):
        for index in chosen:
            yield f"{index:04d}", {"image": images[index], "label": int(labels[index])}


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Return the images, uint8 (1797, SIZE, SIZE, 3), white ink on black, and their labels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    enlarge = _bilinear(digits.images.shape[1], SIZE)
    images = enlarge @ (digits.images * 255 / 16) @ enlarge.T  # 16 levels of grey
    images = images.round().astype("uint8")
    return np.repeat(images[..., None], 3, axis=-1), digits.target


def _bilinear(small: int, large: int) -> np.ndarray:
    """Return the matrix that interpolates `small` points to `large`, pixel centres aligned."""
    position = np.clip((np.arange(large) + 0.5) * small / large - 0.5, 0, small - 1)
    return np.maximum(1 - np.abs(position[:, None] - np.arange(small)), 0)


def _split(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Return the indices of each split, stratified by class; every index is used once."""
    from sklearn.model_selection import train_test_split

    everything = np.arange(len(labels))
    rest, test = train_test_split(
        everything, test_size=SPLITS["test"], stratify=labels, random_state=SEED
    )
    train, validation = train_test_split(
        rest, test_size=SPLITS["validation"], stratify=labels[rest], random_state=SEED
    )
    return {"train": train, "validation": validation, "test": test}
