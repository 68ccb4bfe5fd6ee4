"""Pretrains a tiny CLIP on scenes and their captions and writes its preset folder.

    python data/presets/build_scene_clip.py --dtype mixed_bfloat16

Every scene is newly drawn. Eight pairs of colour and shape are never drawn here
(`scenes.render.HELD_OUT`); they are for zero-shot tests. If a run is killed, the same command
continues it from its last checkpoint. The loss is that of CLIP: in each batch, images must be
matched to their captions and captions to their images (Radford et al., 2021, arXiv:2103.00020).
"""

import argparse
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import keras_hub
import numpy as np
import tokenizers

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tasks"))
import common  # noqa: E402
from scenes import render  # noqa: E402

SEED = 0
SIZE = 64  # pixels
BATCH = 256
EPOCH = 250  # steps between checkpoints
TOKENS = 24  # start, words, end
MERGES = 400  # vocabulary limit for learning merges: every word of the captions becomes one token
SCALE, OFFSET = 1 / 127.5, -1.0  # pixels 0..255 to -1..1
START, END = "<|startoftext|>", "<|endoftext|>"


def tokenizer() -> keras_hub.models.CLIPTokenizer:
    """Return a byte-pair encoding learned from captions; other text is split into letters."""
    rng = np.random.default_rng(SEED)
    scenes = render.sample(20_000, rng)
    captions = [render.caption(scenes[i], rng) for i in range(len(scenes))]
    learner = tokenizers.Tokenizer(tokenizers.models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=MERGES, end_of_word_suffix="</w>", show_progress=False
    )
    learner.train_from_iterator(captions, trainer)
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokens = letters + [letter + "</w>" for letter in letters]
    merges = [" ".join(pair) for pair in _merges(learner)]
    tokens += [merge.replace(" ", "") for merge in merges]
    # The end token must have the largest number: KerasHub's text tower finds it that way.
    vocabulary = {token: number for number, token in enumerate([*tokens, START, END])}
    return keras_hub.models.CLIPTokenizer(vocabulary, merges)


def _merges(learner: tokenizers.Tokenizer) -> list[tuple[str, str]]:
    found = json.loads(learner.to_str())["model"]["merges"]
    return [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in found]


def preprocessor() -> keras_hub.models.CLIPPreprocessor:
    """Return a preprocessor that turns prompts into TOKENS token ids and scales images to -1..1."""
    return keras_hub.models.CLIPPreprocessor(
        tokenizer(),
        keras_hub.layers.CLIPImageConverter(image_size=(SIZE, SIZE), scale=SCALE, offset=OFFSET),
        sequence_length=TOKENS,
    )


class Pairs(keras.utils.PyDataset):
    """One epoch of newly drawn scenes and captions, always the same for the same (seed, epoch)."""

    def __init__(self, encode: keras_hub.models.CLIPPreprocessor, epoch: int):
        super().__init__(workers=1, max_queue_size=4)
        self.encode, self.epoch = encode, epoch

    def __len__(self) -> int:
        return EPOCH

    def __getitem__(self, batch: int) -> tuple[dict, dict]:
        rng = np.random.default_rng([SEED, 1 + self.epoch, batch])
        scenes = render.sample(BATCH, rng)
        parts = [render.draw(scenes[i : i + 32], rng, SIZE) for i in range(0, BATCH, 32)]
        captions = [render.caption(scenes[i], rng) for i in range(BATCH)]
        x = self.encode({"images": None, "prompts": captions})
        images = np.concatenate(parts).astype("float32") * SCALE + OFFSET
        match = np.arange(BATCH)
        return (
            {"images": images, "token_ids": x["token_ids"]},
            {"vision_logits": match, "text_logits": match},
        )


def network(vocabulary: int) -> keras_hub.models.CLIPBackbone:
    """Return an image tower of five blocks (64 patches), a text tower of two; 0.7 M parameters."""
    width = {"hidden_dim": 96, "num_heads": 3, "intermediate_dim": 192}
    vision = keras_hub.models.CLIPVisionEncoder(
        patch_size=8, num_layers=5, image_shape=(SIZE, SIZE, 3), **width
    )
    text = keras_hub.models.CLIPTextEncoder(
        vocabulary, embedding_dim=96, num_layers=2, max_sequence_length=TOKENS, **width
    )
    return keras_hub.models.CLIPBackbone(vision, text, projection_dim=64)


def trainable(backbone: keras_hub.models.CLIPBackbone, steps: int) -> keras.Model:
    """Return the network with its logits in float32, compiled."""
    image = keras.Input((SIZE, SIZE, 3), name="images")
    token_ids = keras.Input((TOKENS,), dtype="int32", name="token_ids")
    backbone.clip_head.dtype_policy = "float32"  # bfloat16 is too coarse for logits up to 100
    seen = keras.ops.cast(backbone.get_vision_embeddings(image), "float32")
    read = keras.ops.cast(backbone.get_text_embeddings(token_ids), "float32")
    vision_logits, text_logits = backbone.clip_head(seen, read)
    model = keras.Model(
        {"images": image, "token_ids": token_ids},
        {"vision_logits": vision_logits, "text_logits": text_logits},
    )
    rate = keras.optimizers.schedules.CosineDecay(
        1e-5, steps * 24 // 25, warmup_target=1.5e-3, warmup_steps=steps // 25
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(
        keras.optimizers.AdamW(rate, weight_decay=0.03, global_clipnorm=1.0),
        loss={"vision_logits": loss, "text_logits": loss},
        metrics={"vision_logits": "accuracy"},
    )
    return model


def train(encode, vocabulary: int, steps: int, work: Path) -> keras_hub.models.CLIPBackbone:
    """Return the network, trained for `steps`."""
    keras.utils.set_random_seed(SEED)
    backbone = network(vocabulary)
    model = trainable(backbone, steps)
    common.train(model, steps // EPOCH, lambda e: Pairs(encode, e), work, "vision_logits_accuracy")
    return backbone


def zero_shot(backbone, encode, held_out: bool, n: int = 1_000) -> dict[str, float]:
    """Return the zero-shot accuracy (%) for the shape among 8 names and the pair among all 64."""
    rng = np.random.default_rng([SEED, 0, held_out])
    scenes = render.sample(n, rng, held_out)
    images = np.concatenate([render.draw(scenes[i : i + 50], rng, SIZE) for i in range(0, n, 50)])
    seen = backbone.get_vision_embeddings(images.astype("float32") * SCALE + OFFSET)

    def accuracy(prompts: list[str], truth: np.ndarray) -> float:
        read = backbone.get_text_embeddings(
            encode({"images": None, "prompts": prompts})["token_ids"]
        )
        _, logits = backbone.clip_head(read, seen)
        return round(100 * float(np.mean(np.argmax(logits, axis=1) == truth)), 1)

    shapes, colours = list(render.SHAPES), list(render.COLOURS)
    pairs = [f"a {colour} {shape}" for shape in shapes for colour in colours]
    return {
        "shape": accuracy([f"a {shape}" for shape in shapes], scenes.shape),
        "shape and colour": accuracy(pairs, scenes.shape * len(colours) + scenes.colour),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2_000, help=f"of {BATCH} pairs")
    parser.add_argument("--dtype", default="float32", help="or mixed_bfloat16, on new processors")
    parser.add_argument("--out", type=Path, default=HERE / "scene_clip")
    parser.add_argument("--work", type=Path, default=HERE.parent / ".cache" / "scene_clip")
    options = parser.parse_args()

    encode = preprocessor()
    vocabulary = encode.tokenizer.vocabulary_size()
    keras.config.set_dtype_policy(options.dtype)
    trained = train(encode, vocabulary, options.steps, options.work)
    keras.config.set_dtype_policy("float32")
    backbone = network(vocabulary)
    backbone.set_weights(trained.get_weights())
    common.write_preset([backbone, encode], options.out, options.work, {
        "name": "scene_clip",
        "task": "scenes",
        "seed": SEED,
        "steps": options.steps,
        "batch": BATCH,
        "dtype": options.dtype,
        "zero_shot": zero_shot(backbone, encode, held_out=False),
        "zero_shot_on_held_out_pairs": zero_shot(backbone, encode, held_out=True),
    })  # fmt: skip


if __name__ == "__main__":
    main()
