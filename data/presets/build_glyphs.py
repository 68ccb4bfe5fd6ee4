"""Pretrains one of the glyph networks on printed letters and writes its preset folder.

    python data/presets/build_glyphs.py glyph_resnet --dtype mixed_bfloat16

Every image is newly drawn, so none is seen twice. If a run is killed, the same command continues it
from its last checkpoint. It runs on any Keras backend (KERAS_BACKEND=jax for a GPU without
TensorFlow). No target task is used here: all choices were made on letters held out of training
(`few_shot`).
"""

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import keras_hub
import numpy as np
from sklearn.linear_model import LogisticRegression

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tasks"))
import common  # noqa: E402
from glyphs import render  # noqa: E402

SEED = 0
SIZE = 32  # pixels
EPOCH = 250  # steps between checkpoints
HOLD_OUT = 12  # every twelfth letter is held out of training, for `few_shot`
SCALE, OFFSET = 1 / 127.5, -1.0  # pixels 0..255 to -1..1


class Letters(keras.utils.PyDataset):
    """One epoch of newly drawn letters, always the same for the same (seed, epoch).

    A share of them can be easy: bright on dark, upright, as printed. Trained on hard letters only,
    a transformer stays at chance level for its first hundred thousand letters.
    """

    def __init__(self, glyphs, classes: np.ndarray, epoch: int, size: int, easy: float = 0.0):
        super().__init__(workers=1, max_queue_size=4)
        self.glyphs, self.epoch = glyphs, epoch
        self.sizes = size - round(easy * size), round(easy * size)
        self.members = [np.flatnonzero(glyphs.labels == c) for c in classes]

    def __len__(self) -> int:
        return EPOCH

    def __getitem__(self, batch: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng([SEED, self.epoch, batch])
        hard, easy = self.sizes
        labels = rng.integers(len(self.members), size=hard + easy)
        chosen = np.array([rng.choice(self.members[label]) for label in labels])
        images = render.draw(self.glyphs, chosen[:hard], rng, SIZE) if hard else None
        if easy:
            drawn = render.draw(self.glyphs, chosen[hard:], rng, SIZE, as_printed=True, bright=1.0)
            images = np.concatenate([images, drawn]) if hard else drawn
        return images, labels


def glyph_resnet() -> keras.Model:
    """Return a pre-activation ResNet of four one-block stages, with 1.3 M parameters."""
    return keras_hub.models.ResNetBackbone(
        input_conv_filters=[32, 32, 64],
        input_conv_kernel_sizes=[3, 3, 3],
        stackwise_num_filters=[64, 64, 128, 256],
        stackwise_num_blocks=[1, 1, 1, 1],
        stackwise_num_strides=[1, 1, 2, 2],  # letters are small: halve the size late
        block_type="basic_block",
        use_pre_activation=True,
    )


def glyph_resnet_small() -> keras.Model:
    """Return a ResNet with half as many stages, 0.3 M parameters: a student for distillation."""
    return keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 128],
        stackwise_num_blocks=[1, 1],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
        use_pre_activation=True,
    )


def glyph_vit() -> keras.Model:
    """Return a ViT of six blocks on 64 patches of 4x4 pixels, no class token, 0.46 M parameters.

    With KerasHub's initial weights, all tokens of an image are nearly the same, because the
    brightness of the paper outweighs strokes and positions. So most filters start with a mean of 0,
    and positions with values as large as those of strokes.
    """
    network = keras_hub.models.ViTBackbone(
        image_shape=(SIZE, SIZE, 3),
        patch_size=4,
        num_layers=6,
        num_heads=3,
        hidden_dim=96,
        mlp_dim=192,
        use_class_token=False,
    )
    embedding = network.get_layer("vit_patching_and_embedding")
    filters = keras.ops.convert_to_numpy(embedding.patch_embedding.kernel).copy()
    filters[..., 8:] = 3 * (filters - filters.mean(axis=(0, 1, 2)))[..., 8:]
    embedding.patch_embedding.kernel.assign(filters)
    positions = embedding.position_embedding.embeddings
    positions.assign(25 * positions)
    return network


@dataclass(frozen=True)
class Recipe:
    """The builder, the image converter and the training settings of one of the networks."""

    network: Callable[[], keras.Model]
    converter: type
    steps: int
    batch: int = 256
    rate: float = 2e-3
    weight_decay: float = 0.03
    every: int = 1  # train on one in this many letters
    easy: float = 0.0  # share of training in which the share of easy letters falls to 0


HUB = keras_hub.layers
RECIPES = {
    "glyph_resnet": Recipe(glyph_resnet, HUB.ResNetImageConverter, 8_000),
    "glyph_resnet_small": Recipe(glyph_resnet_small, HUB.ResNetImageConverter, 3_000),
    "glyph_vit": Recipe(glyph_vit, HUB.ViTImageConverter, 6_000, 64, 1e-3, 0.05, every=4, easy=0.5),
}


def pooled(backbone: keras.Model) -> keras.Model:
    """Return the network with its scaling in front and its map or tokens averaged."""
    image = keras.Input((SIZE, SIZE, 3))
    x = backbone(keras.layers.Rescaling(SCALE, OFFSET)(image))
    rank = len(x.shape) - 2
    pool = getattr(keras.layers, f"GlobalAveragePooling{rank}D")
    return keras.Model(image, pool()(x))


def classifier(recipe: Recipe, classes: int, steps: int) -> keras.Model:
    """Return the backbone with a linear head on its pooled features, compiled."""
    features = pooled(recipe.network())
    logits = keras.layers.Dense(classes, dtype="float32")(features.output)
    model = keras.Model(features.input, logits)
    rate = keras.optimizers.schedules.CosineDecay(
        1e-5, steps * 24 // 25, warmup_target=recipe.rate, warmup_steps=steps // 25
    )
    model.compile(
        keras.optimizers.AdamW(rate, weight_decay=recipe.weight_decay, global_clipnorm=1.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def train(
    recipe: Recipe, glyphs: render.Glyphs, classes: np.ndarray, steps: int, work: Path
) -> keras.Model:
    """Return a classifier of the letters `classes`, trained for `steps`."""
    keras.utils.set_random_seed(SEED)
    model = classifier(recipe, len(classes), steps)

    def letters(epoch: int) -> Letters:
        easy = max(0.0, 1 - epoch * EPOCH / steps / recipe.easy) if recipe.easy else 0.0
        return Letters(glyphs, classes, epoch, recipe.batch, easy)

    common.train(model, steps // EPOCH, letters, work)
    return model


def few_shot(
    backbone: keras.Model, glyphs: render.Glyphs, classes: np.ndarray, shots=(1, 5, 10, 30)
) -> dict[int, float]:
    """Return the accuracy (%) of linear probes on ten held-out letters, the mean of 20 draws."""
    rng = np.random.default_rng(SEED + 1)
    extract = pooled(backbone)
    x = {}
    for c in classes:
        chosen = rng.choice(np.flatnonzero(glyphs.labels == c), 80)
        features = extract.predict(render.draw(glyphs, chosen, rng, SIZE), verbose=0)
        x[c] = features / np.linalg.norm(features, axis=1, keepdims=True) * 10
    scores = {shot: [] for shot in shots}
    for _ in range(20):
        ten = rng.choice(classes, 10, replace=False)
        test = np.concatenate([x[c][40:] for c in ten]), np.repeat(np.arange(10), 40)
        for shot in shots:
            known = np.concatenate([x[c][:shot] for c in ten]), np.repeat(np.arange(10), shot)
            scores[shot].append(LogisticRegression(max_iter=1000).fit(*known).score(*test))
    return {shot: round(100 * float(np.mean(s)), 1) for shot, s in scores.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--steps", type=int, help="of a batch, in place of the recipe's")
    parser.add_argument("--dtype", default="float32", help="or mixed_bfloat16, on new processors")
    parser.add_argument("--out", type=Path, help="the preset's folder")
    parser.add_argument("--work", type=Path, help="where checkpoints are kept")
    options = parser.parse_args()
    name, recipe = options.name, RECIPES[options.name]
    steps = options.steps or recipe.steps
    work = options.work or HERE.parent / ".cache" / name

    glyphs = render.glyphs()
    held_out = np.arange(0, len(glyphs.classes), HOLD_OUT)
    classes = np.setdiff1d(np.arange(len(glyphs.classes)), held_out)[:: recipe.every]
    keras.config.set_dtype_policy(options.dtype)
    model = train(recipe, glyphs, classes, steps, work)

    keras.config.set_dtype_policy("float32")
    backbone = recipe.network()
    trained = next(layer for layer in model.layers if isinstance(layer, type(backbone)))
    backbone.set_weights(trained.get_weights())
    size = {"image_size": (SIZE, SIZE)} if name == "glyph_vit" else {}
    converter = recipe.converter(scale=SCALE, offset=OFFSET, **size)
    common.write_preset([backbone, converter], options.out or HERE / name, work, {
        "name": name,
        "task": "glyphs/letters",
        "seed": SEED,
        "steps": steps,
        "batch": recipe.batch,

        "dtype": options.dtype,
        "classes": len(classes),
        "held_out_classes": len(held_out),
        "few_shot_on_held_out_classes": few_shot(backbone, glyphs, held_out),
    })  # fmt: skip


if __name__ == "__main__":
    main()
