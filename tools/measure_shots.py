"""Words compared with labels: zero-shot, few-shot and learned prompts, on frozen networks.

    python tools/measure_shots.py             # about ten minutes of one quiet core
    python tools/measure_shots.py --only coop # or a part of it

Writes data/results/shots.csv, which chapter 08_09 reads, one row per run, as it goes. Stored rows
are not measured again.

Scenes (synthetic), unchanged (`clean`) and with `grain`: half the contrast, and normal noise with a
spread of 36 grey values. `scene_clip` is frozen and was never trained on grain, nor on eight of the
64 pairs of colour and shape. All 64 are possible answers. `score` is accuracy on the 1,600 test
images (56 pairs), `unseen` that on the second 400 images of `held_out` (the eight pairs). Labels
are drawn from train and from the first 400 of `held_out`, k of each of the 64 pairs; for `coop, 56
pairs`, none of the eight.

- `prompts`: zero-shot with other wordings. Nothing is drawn.
- `shots`: `prototypes`, the mean vector of each pair; `linear`, logistic regression; `both`,
  (1 - strength) words + strength prototypes; `coop`, four learned vectors in place of "a photo of
  a" (Zhou et al. 2021), which start at "a", with 100 steps of AdamW, batches of 32, cosine decay.
- `shape`: the shape alone (8 answers), from k labels of each of 56 pairs; 0 is all. `linear`, and
  `words`, the shape of the best of the 64 pairs.

Strengths (the C of the regression, the share of the prototypes, the rate of CoOp) are chosen on
validation data by one or two draws that are not used again (seeds from 100; rows without a score).
Five others are tested.

Digits behind blinds with `glyph_vit` (part `visual`) have the labels, head and steps of
measure_adapters.py, so that the rows can be compared. `tokens`: eight learned tokens before the
first block; `deep`: eight before every block (Jia et al. 2022); `pixels`: a learned frame of four
pixels is added to the image (Bahng et al. 2022).

`deep` is stored so far; the same command measures the other two.

`seconds` are CPU seconds without computing features; `parameters` are those that learn.
"""

import argparse
import functools
import time
import warnings
from collections.abc import Callable
from itertools import product

import tlkeras as tlk

import keras  # isort: skip  (after tlkeras, which keeps TensorFlow quiet)
import keras_hub
import measure_adapters
import numpy as np
from keras import ops
from rows import Rows
from sklearn.linear_model import LogisticRegression
from trials import cosine, forget, in_passes

from tlkeras.utils import paths

ROWS = Rows(
    "shots", ("part", "data", "method", "labels_per_class", "strength", "seed"),
    ("validation", "score", "unseen", "seconds", "parameters"),
)  # fmt: skip
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "crescent", "heart")
NAMES = [f"{colour} {shape}" for shape in SHAPES for colour in COLOURS]
SEEN = [pair for pair in range(64) if (3 * (pair // 8) + 1) % 8 != pair % 8]
POOL = 400  # images of the held-out pairs that can be drawn as labelled ones
SHOTS, SEARCH, SEEDS = (1, 2, 4, 8, 16), (100, 101), range(5)
STRENGTHS = {
    "prototypes": (1.0,), "linear": (1.0, 10.0, 100.0, 1000.0),
    "both": (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7),
    "coop": (1e-3, 3e-3, 1e-2), "coop, 56 pairs": (1e-3, 3e-3, 1e-2),
}  # fmt: skip
OTHER_WORDS = dict(zip(
    SHAPES, ("dot", "tile", "wedge", "asterisk", "x", "doughnut", "croissant", "valentine"),
    strict=True,
))  # fmt: skip
SYNONYMS = dict(zip(
    SHAPES, ("disc", "box", "three-sided shape", "five-pointed star", "plus sign", "hoop",
             "sickle", "heart shape"), strict=True,
))  # fmt: skip
WORDINGS = (
    "a {}", "{}", "the {}", "a picture of a {}", "an image of a {}", "this is a {}",
    "a photo of a {}", "a {} in the middle", "a small plain {}",
)  # fmt: skip
ENSEMBLE = WORDINGS[:6]
CONTEXT, TOKENS, WIDTH, STEPS, BATCH = 4, 12, 96, 100, 32
START = 320  # the token of "a"


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


class Scenes:
    """The vectors of all images, by split."""

    def __init__(self, grain: bool):
        task = tlk.load_task("scenes", image_size=64)
        tower = tlk.load_backbone("scene_clip", 64, tower="image")
        rng, found = np.random.default_rng(0), {}
        for split in ("train", "validation", "test", "held_out"):
            images, shape, colour = task.arrays(split, "image", "label", "colour")
            if grain:
                noise = rng.normal(0, 36, images.shape)
                images = np.clip(64 + 0.5 * images + noise, 0, 255).astype("float32")
            found[split] = unit(tower.predict(images, 100, verbose=0)), 8 * shape + colour
        held = found["held_out"]
        parts = zip(found["train"], held, strict=True)
        self.pool = tuple(np.concatenate([x, more[:POOL]]) for x, more in parts)
        self.judged = {"validation": found["validation"], "score": found["test"]}
        self.judged["unseen"] = tuple(part[POOL:] for part in held)

    def drawn(self, labels: int, seed: int, pairs=range(64)) -> tuple[np.ndarray, np.ndarray]:
        """Return vectors and pairs of `labels` images of each pair; 0 is all."""
        x, y = self.pool
        rng = np.random.default_rng(seed)
        members = [np.flatnonzero(y == pair) for pair in pairs]
        chosen = np.concatenate([rng.choice(m, labels or len(m), replace=False) for m in members])
        return x[chosen], y[chosen]

    def scores(self, answer: Callable, of: int = 1) -> dict[str, float]:
        """Return the accuracy of the answers, by column; with `of=8`, of shapes alone."""
        return {c: float(np.mean(answer(x) == y // of)) for c, (x, y) in self.judged.items()}


@functools.cache
def scenes(data: str) -> Scenes:
    return Scenes(data == "grain")


@functools.cache
def clip():
    network = tlk.load_backbone("scene_clip")
    network.trainable = False
    return network


@functools.cache
def token_ids(*prompts: str) -> np.ndarray:
    folder = next(folder for folder in paths.presets() if folder.name == "scene_clip")
    prepare = keras_hub.models.CLIPPreprocessor.from_preset(str(folder))
    found = prepare({"images": None, "prompts": list(prompts)})["token_ids"]
    return ops.convert_to_numpy(found)


@functools.cache
def words(wording: str = "a {}", names: tuple[str, ...] = tuple(NAMES)) -> np.ndarray:
    """Return a unit vector for each of the 64 prompts."""
    ids = token_ids(*[wording.format(name) for name in names])
    return unit(ops.convert_to_numpy(clip().get_text_embeddings(ids)))


def nearest(vectors: np.ndarray) -> Callable:
    def answer(x: np.ndarray) -> np.ndarray:
        return (x @ vectors.T).argmax(axis=1)

    return answer


@keras.saving.register_keras_serializable("tlkeras_tools")
class Prompt(keras.layers.Layer):
    """Maps vectors of images to logits, with prompts whose first words are learned."""

    def __init__(self, pairs: list[int]):
        super().__init__()
        ids = token_ids(*[" ".join(["a"] * CONTEXT + [name]) for name in NAMES])
        self.ids = ids[pairs][:, :TOKENS]  # tokens after the end have no effect
        self.table = clip().text_encoder.embedding.token_embedding

    def build(self, shape: tuple) -> None:
        self.context = self.add_weight(shape=(CONTEXT, WIDTH), name="context")
        self.begin()

    def begin(self) -> None:
        start = ops.convert_to_numpy(self.table.embeddings)[START]
        self.context.assign(np.tile(start, (CONTEXT, 1)))

    def vectors(self, ids: np.ndarray) -> keras.KerasTensor:
        network = clip()
        x = self.table(ids)
        learned = ops.broadcast_to(self.context, (len(ids), CONTEXT, WIDTH))
        x = ops.concatenate([x[:, :1], learned, x[:, 1 + CONTEXT :]], axis=1)
        x = x + network.text_encoder.embedding.position_embedding(x)
        for block in network.text_encoder.encoder_layers:
            x = block(x)
        x = network.text_pooler(network.text_encoder.layer_norm(x), ids)
        return ops.normalize(network.text_projection(x))

    def call(self, x: keras.KerasTensor) -> keras.KerasTensor:
        scale = ops.exp(clip().clip_head.logit_scale)
        return scale * ops.matmul(x, ops.transpose(self.vectors(self.ids)))


class CoOp:
    """Learned prompts, built and traced once for many runs."""

    def __init__(self, pairs: list[int]):
        self.pairs, self.prompt, self.every = pairs, Prompt(pairs), Prompt(list(range(64))).ids
        vector = keras.Input((64,))
        self.model = keras.Model(vector, self.prompt(vector))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.model.compile(keras.optimizers.AdamW(weight_decay=0.0), loss, jit_compile=False)
        self.model.train_on_batch(np.ones((BATCH, 64)), np.zeros(BATCH))

    def train(self, x: np.ndarray, y: np.ndarray, rate: float, seed: int) -> np.ndarray:
        """Train; return the vectors of the prompts of all 64 pairs."""
        self.prompt.begin()
        forget(self.model.optimizer)
        y = np.searchsorted(self.pairs, y)
        order = in_passes(len(y), STEPS * BATCH, np.random.default_rng(seed))
        for step in range(STEPS):
            some = order[step * BATCH : (step + 1) * BATCH]
            self.model.optimizer.learning_rate = cosine(rate, step, STEPS)
            self.model.train_on_batch(x[some], y[some])
        return ops.convert_to_numpy(self.prompt.vectors(self.every))


@functools.cache
def coop(seen: bool) -> CoOp:
    return CoOp(SEEN if seen else list(range(64)))


def learned(scenes: Scenes, method: str, labels: int, strength: float, seed: int) -> tuple:
    """Return a function that answers, CPU seconds of learning, and the number of parameters."""
    x, y = scenes.drawn(labels, seed, SEEN if "56" in method else range(64))
    if method.startswith("coop"):
        learner = coop("56" in method)
        clock = time.process_time()
        found = nearest(learner.train(x, y, strength, seed))
        return found, time.process_time() - clock, CONTEXT * WIDTH
    clock = time.process_time()
    if method == "linear":
        head = LogisticRegression(C=strength, max_iter=500).fit(x, y)
        return head.predict, time.process_time() - clock, head.coef_.size + head.intercept_.size
    means = unit(np.stack([x[y == pair].mean(axis=0) for pair in range(64)]))
    mixed = (1 - strength) * words() + strength * means if method == "both" else means
    return nearest(mixed), time.process_time() - clock, 0


@keras.saving.register_keras_serializable("tlkeras_tools")
class Frame(keras.layers.Layer):
    """Adds a learned frame of four pixels to images, in units of 100 grey values."""

    def build(self, shape: tuple) -> None:
        self.pixels = self.add_weight(shape=shape[1:], initializer="zeros", name="prompt")
        rim = np.ones(shape[1:], "float32")
        rim[4:-4, 4:-4] = 0
        self.rim = rim

    def call(self, image: keras.KerasTensor) -> keras.KerasTensor:
        return image + 100 * self.rim * self.pixels


@keras.saving.register_keras_serializable("tlkeras_tools")
class Tokens(keras.layers.Layer):
    """Puts learned tokens before the others, replacing the first `old` of these."""

    def __init__(self, count: int, old: int = 0, **options):
        super().__init__(**options)
        self.count, self.old = count, old

    def build(self, shape: tuple) -> None:
        shape = (1, self.count, shape[-1])
        self.tokens = self.add_weight(shape=shape, initializer="glorot_uniform", name="prompt")

    def call(self, x: keras.KerasTensor) -> keras.KerasTensor:
        tokens = ops.repeat(self.tokens, ops.shape(x)[0], axis=0)
        return ops.concatenate([tokens, x[:, self.old :]], axis=1)

    def compute_output_shape(self, shape: tuple) -> tuple:
        return (shape[0], shape[1] + self.count - self.old, shape[2])


class Visual(measure_adapters.Learner):
    """The training of measure_adapters, for prompts and the head."""

    def __init__(self, method: str, count: int = 8):
        self.method = method
        backbone = tlk.load_backbone("glyph_vit", image_size=32)
        backbone.trainable = False
        image = keras.Input(backbone.input_shape[1:])
        if method == "pixels":
            tokens = backbone(Frame()(image))
        else:
            *_, scaling, vit = backbone.layers
            encoder = vit.get_layer("vit_encoder")
            below = keras.Model(backbone.input, scaling.output)
            x = keras.Model(vit.input, encoder.input)(below(image))
            for number, block in enumerate(encoder.encoder_layers):
                if not number or method == "deep":
                    x = Tokens(count, count if number else 0)(x)
                x = block(x)
            tokens = encoder.layer_norm(x)[:, count:]
        vector = keras.layers.GlobalAveragePooling1D()(tokens)
        logits = keras.layers.Dense(10)(keras.layers.Dropout(0.2)(vector))
        self.model = keras.Model(image, logits)
        self.features = keras.Model(image, vector)
        inner = keras.Input(vector.shape[1:])
        self.head = keras.Model(inner, self.model.layers[-1](self.model.layers[-2](inner)))
        self.learning = self.model.trainable_variables
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        for part in (self.model, self.head):
            part.compile(keras.optimizers.AdamW(), loss, jit_compile=False)
        self.start = self.model.get_weights()


VISUAL_RATES = {"deep": (1e-2, 3e-2, 1e-1), "tokens": (1e-2, 3e-2), "pixels": (1e-2, 3e-2)}


# --- parts ---------------------------------------------------------------------------------------


def prompts() -> None:
    kinds = {wording: words(wording) for wording in WORDINGS}
    for name, table in {
        "synonyms: a red hoop": SYNONYMS,
        "never read: a red doughnut": OTHER_WORDS,
    }.items():
        names = tuple(f"{colour} {table[shape]}" for shape in SHAPES for colour in COLOURS)
        kinds[name] = words("a {}", names)
    kinds["mean of six wordings"] = unit(sum(words(wording) for wording in ENSEMBLE))
    for data, (name, vectors) in product(("clean", "grain"), kinds.items()):
        ROWS.once(("prompts", data, name, 0, "", 0), zero_shot, data, nearest(vectors))


def zero_shot(data: str, answer: Callable, of: int = 1) -> dict[str, object]:
    return scenes(data).scores(answer, of) | {"parameters": 0}


def shots(*methods: str) -> None:
    for data, method in product(("clean", "grain"), methods):
        few = (1, 4, 16) if method.startswith("coop") else (*SHOTS, 32)
        draws = SEARCH[: 1 if method.startswith("coop") else 2]
        for labels in few:
            what = (data, method, labels)
            for strength, seed in product(STRENGTHS[method], draws):
                ROWS.once(("search", *what, strength, seed), shot, "search", *what, strength, seed)
            rows = {"data": data, "method": method, "labels_per_class": labels}
            best = float(ROWS.best("strength", part="search", **rows))
            for seed in SEEDS:
                ROWS.once(("shots", *what, best, seed), shot, "shots", *what, best, seed)


def shot(part: str, data: str, method: str, labels: int, strength: float, seed: int) -> dict:
    answer, seconds, size = learned(scenes(data), method, labels, strength, seed)
    found = scenes(data).scores(answer)
    if part == "search":
        found = {"validation": found["validation"]}
    return found | {"seconds": f"{seconds:.2f}", "parameters": size}


def shape() -> None:
    best = nearest(words())
    ROWS.once(("shape", "clean", "words", 0, "", 0), zero_shot, "clean", lambda x: best(x) // 8, 8)
    for labels in (1, 4, 16, 0):
        for seed in SEEDS if labels else (0,):
            ROWS.once(("shape", "clean", "linear", labels, "10", seed), shape_alone, labels, seed)


def shape_alone(labels: int, seed: int) -> dict[str, object]:
    x, y = scenes("clean").drawn(labels, seed, SEEN)
    head = LogisticRegression(C=10, max_iter=500).fit(x, y // 8)
    return scenes("clean").scores(head.predict, of=8) | {"parameters": head.coef_.size + 8}


def visual() -> None:
    for method, rates in VISUAL_RATES.items():
        make = functools.cache(functools.partial(Visual, method))
        for rate in rates:
            key = ("search", "blinds", method, 30, rate, 100)
            ROWS.once(key, prompted, make, rate, 100, "validation")
        best = float(ROWS.best("strength", part="search", data="blinds", method=method))
        for seed in SEEDS:
            ROWS.once(("visual", *key[1:4], best, seed), prompted, make, best, seed, "test")


def prompted(make: Callable, rate: float, seed: int, split: str) -> dict[str, object]:
    found = measure_adapters.measure(make, ("glyph_vit", "blinds", 30), rate, seed, split)
    return {key: value for key, value in found.items() if key in ROWS.columns}


PARTS = {
    "prompts": prompts,
    "shots": functools.partial(shots, "prototypes", "linear", "both"),
    "shape": shape,
    "coop": functools.partial(shots, "coop", "coop, 56 pairs"),
    "visual": visual,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=PARTS)
    only = parser.parse_args().only
    warnings.filterwarnings("ignore", category=UserWarning)
    for name, part in PARTS.items():
        if only in (None, name):
            part()


if __name__ == "__main__":
    main()
