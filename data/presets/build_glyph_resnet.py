"""Pretrains `glyph_resnet` on printed letters and writes its preset folder.

    python data/presets/build_glyph_resnet.py --dtype mixed_bfloat16

Every image is drawn anew, so none is seen twice. A run that is killed goes on from its last
checkpoint when the same command is given again. Runs on any Keras backend (KERAS_BACKEND=jax
for a GPU without TensorFlow). No target task is looked at here: whatever was chosen was chosen
on letters held out of training (`few_shot`).
"""

import argparse
import csv
import hashlib
import json
import os
import shutil
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import keras_hub
import numpy as np
from sklearn.linear_model import LogisticRegression

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tasks"))
from glyphs import render  # noqa: E402

SEED = 0
SIZE = 32  # pixels
BATCH = 256
EPOCH = 250  # steps between checkpoints
HOLD_OUT = 12  # every twelfth letter is kept out of training, for `few_shot`
SCALE, OFFSET = 1 / 127.5, -1.0  # pixels 0..255 to -1..1


class Letters(keras.utils.PyDataset):
    """One epoch of freshly drawn letters, the same for the same (seed, epoch)."""

    def __init__(self, glyphs: render.Glyphs, classes: np.ndarray, epoch: int):
        super().__init__(workers=1, max_queue_size=4)
        self.glyphs, self.epoch = glyphs, epoch
        self.members = [np.flatnonzero(glyphs.labels == c) for c in classes]

    def __len__(self) -> int:
        return EPOCH

    def __getitem__(self, batch: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng([SEED, self.epoch, batch])
        labels = rng.integers(len(self.members), size=BATCH)
        chosen = np.array([rng.choice(self.members[label]) for label in labels])
        return render.draw(self.glyphs, chosen, rng, SIZE), labels


def network() -> keras_hub.models.ResNetBackbone:
    """A pre-activation ResNet of four one-block stages, 1.3 M parameters."""
    return keras_hub.models.ResNetBackbone(
        input_conv_filters=[32, 32, 64],
        input_conv_kernel_sizes=[3, 3, 3],
        stackwise_num_filters=[64, 64, 128, 256],
        stackwise_num_blocks=[1, 1, 1, 1],
        stackwise_num_strides=[1, 1, 2, 2],  # letters are small: halve the size late
        block_type="basic_block",
        use_pre_activation=True,
    )


def classifier(backbone: keras.Model, classes: int, steps: int) -> keras.Model:
    """The backbone with a linear head over its pooled features, ready to train."""
    image = keras.Input((None, None, 3))
    x = backbone(keras.layers.Rescaling(SCALE, OFFSET)(image))
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(image, keras.layers.Dense(classes, dtype="float32")(x))
    rate = keras.optimizers.schedules.CosineDecay(
        1e-5, steps * 24 // 25, warmup_target=2e-3, warmup_steps=steps // 25
    )
    model.compile(
        keras.optimizers.AdamW(rate, weight_decay=0.03, global_clipnorm=1.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def train(glyphs: render.Glyphs, classes: np.ndarray, steps: int, work: Path) -> keras.Model:
    """Trains for `steps`, a checkpoint every EPOCH steps; goes on from the last one."""
    work.mkdir(parents=True, exist_ok=True)
    checkpoint, log = work / "checkpoint.keras", work / "log.csv"
    if checkpoint.exists():
        model = keras.saving.load_model(checkpoint)
    else:
        keras.utils.set_random_seed(SEED)
        model = classifier(network(), len(classes), steps)
    for epoch in range(int(model.optimizer.iterations) // EPOCH, steps // EPOCH):
        start = time.perf_counter()
        history = model.fit(Letters(glyphs, classes, epoch), verbose=0).history
        seconds = time.perf_counter() - start
        row = [epoch + 1, history["loss"][0], history["accuracy"][0], seconds]
        model.save(work / "next.keras")
        os.replace(work / "next.keras", checkpoint)
        with log.open("a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(f"{value:.5g}" for value in row)
        print(
            "epoch {} of {}: loss {:.3f}, accuracy {:.3f}, {:.0f} s".format(
                epoch + 1, steps // EPOCH, *row[1:]
            ),
            flush=True,
        )
    return model


def few_shot(
    backbone: keras.Model, glyphs: render.Glyphs, classes: np.ndarray, shots=(1, 5, 10, 30)
) -> dict[int, float]:
    """Accuracy (%) of linear probes on ten letters never trained on, mean of 20 draws."""
    rng = np.random.default_rng(SEED + 1)
    image = keras.Input((None, None, 3))
    pooled = keras.layers.GlobalAveragePooling2D()
    extract = keras.Model(image, pooled(backbone(keras.layers.Rescaling(SCALE, OFFSET)(image))))
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
    parser.add_argument("--steps", type=int, default=8_000, help=f"of {BATCH} images")
    parser.add_argument("--dtype", default="float32", help="or mixed_bfloat16, on new processors")
    parser.add_argument("--out", type=Path, default=HERE / "glyph_resnet")
    parser.add_argument("--work", type=Path, default=HERE.parent / ".cache" / "glyph_resnet")
    options = parser.parse_args()

    glyphs = render.glyphs()
    held_out = np.arange(0, len(glyphs.classes), HOLD_OUT)
    classes = np.setdiff1d(np.arange(len(glyphs.classes)), held_out)
    keras.config.set_dtype_policy(options.dtype)
    model = train(glyphs, classes, options.steps, options.work)

    keras.config.set_dtype_policy("float32")
    backbone = network()
    trained = next(layer for layer in model.layers if isinstance(layer, type(backbone)))
    backbone.set_weights(trained.get_weights())
    write_preset(backbone, options.out, options.work, {
        "name": "glyph_resnet",
        "task": "glyphs/letters",
        "seed": SEED,
        "steps": options.steps,
        "batch": BATCH,
        "dtype": options.dtype,
        "classes": len(classes),
        "held_out_classes": len(held_out),
        "few_shot_on_held_out_classes": few_shot(backbone, glyphs, held_out),
    })  # fmt: skip


def write_preset(backbone: keras.Model, out: Path, work: Path, card: dict) -> None:
    """Writes the preset folder beside `out`, then puts it in its place; cards stay."""
    new = work / "preset"
    shutil.rmtree(new, ignore_errors=True)
    backbone.save_to_preset(str(new))
    converter = keras_hub.layers.ResNetImageConverter(scale=SCALE, offset=OFFSET)
    converter.save_to_preset(str(new))
    shutil.copy(work / "log.csv", new / "training.csv")
    with (new / "training.csv").open() as file:
        log = [[float(value) for value in row] for row in csv.reader(file)]
    card |= {
        "training_loss": log[-1][1],
        "training_accuracy": log[-1][2],
        "seconds": round(sum(row[3] for row in log)),
        "files": {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(new.iterdir())
        },
    }
    (new / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    out.mkdir(parents=True, exist_ok=True)
    for path in new.iterdir():
        os.replace(path, out / path.name)
    print(json.dumps(card, indent=2))


if __name__ == "__main__":
    main()
