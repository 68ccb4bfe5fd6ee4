"""Printed characters drawn from matplotlib's fonts, as a TFDS builder; see card.md."""

from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

SIZE = 32  # pixels
SEED = 0
# The result of render.letters(), stored so that loading does not compute it; a test compares both.
LETTERS = "".join(Path(__file__).with_name("letters.txt").read_text(encoding="utf-8").split())
DIGITS = "0123456789"
STYLES = {  # the fonts of each style; each split of `styles` has its own letters
    "sans": ("DejaVuSans", "cmss10"),
    "sans bold": ("DejaVuSans-Bold",),
    "serif": ("DejaVuSerif", "STIXGeneral", "cmr10"),
    "serif bold": ("DejaVuSerif-Bold", "STIXGeneralBol", "cmb10"),
    "italic": ("DejaVuSans-Oblique", "DejaVuSerif-Italic", "STIXGeneralItalic", "cmmi10"),
    "typewriter": ("DejaVuSansMono", "cmtt10"),
}
STYLE_LETTERS = {
    "train": "ABDEGHJKMNPRSUWXYabdeghjkmnprsuwxy",
    "validation": "CFQcfq",
    "test": "LTVZltvz",
}
PER_CLASS = {"train": 60, "validation": 10, "test": 10}
PER_DIGIT = {"train": 200, "validation": 40, "test": 80}
PER_STYLE = {"train": 300, "validation": 60, "test": 120}
CONFIGS = {
    "letters": "All letters, no digits.",
    "digits": "The ten digits, printed.",
    "styles": "Latin letters by the style of their font.",
}


class Builder(tfds.core.GeneratorBasedBuilder):
    """`tfds.load("glyphs/letters")` after `import tlkeras.tasks`."""

    VERSION = tfds.core.Version("1.1.0")
    START = "glyph_resnet"
    code_path = Path(__file__)  # else TFDS 4.9 looks for it with a package it does not install
    NOTE = "Synthetic"
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name=name, description=text) for name, text in CONFIGS.items()
    ]

    @property
    def SLOW(self) -> str | None:
        letters = self.builder_config.name == "letters"
        return "drawing 37,000 images takes about a minute" if letters else None

    def _info(self) -> tfds.core.DatasetInfo:
        classes = {"letters": LETTERS, "digits": DIGITS, "styles": STYLES}
        return self.dataset_info_from_configs(
            description=Path(__file__).with_name("card.md").read_text(encoding="utf-8"),
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(SIZE, SIZE, 3)),
                    "label": tfds.features.ClassLabel(
                        names=list(classes[self.builder_config.name])
                    ),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):
        from . import render

        config = self.builder_config.name
        if config == "styles":
            sources = {
                split: render.glyphs(tuple(letters)) for split, letters in STYLE_LETTERS.items()
            }
            labels = {split: _styles(source) for split, source in sources.items()}
            counts = PER_STYLE
        else:
            source = render.glyphs(tuple(LETTERS if config == "letters" else DIGITS))
            counts = PER_CLASS if config == "letters" else PER_DIGIT
            sources, labels = dict.fromkeys(counts, source), dict.fromkeys(counts, source.labels)
        return {
            split: self._generate_examples(sources[split], labels[split], number, counts[split])
            for number, split in enumerate(counts)
        }

    def _generate_examples(self, source, labels, split, per_class):
        from . import render

        as_printed = self.builder_config.name == "styles"
        rng = np.random.default_rng([SEED, split])
        for label in range(labels.max() + 1):
            chosen = rng.choice(np.flatnonzero(labels == label), per_class)
            images = render.draw(source, chosen, rng, SIZE, as_printed)
            for number, image in enumerate(images):
                yield f"{label:04d}-{number:03d}", {"image": image, "label": label}


def _styles(source) -> np.ndarray:
    """Return the style of every glyph, an index into STYLES; -1 for fonts without a style."""
    from . import render

    style_of = {font: label for label, fonts in enumerate(STYLES.values()) for font in fonts}
    return np.array([style_of.get(render.FONTS[font], -1) for font in source.fonts])
