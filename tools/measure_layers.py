"""What each block of a pretrained network knows, and how much of it another task can use.

    python tools/measure_layers.py                  # about 8 minutes on 2 cores
    python tools/measure_layers.py --part probe     # or keep, or tune

Writes data/results/layers.csv, which chapter 05 reads: one row a part, task, network, block and
seed; what is there is not measured again. The seed draws the labelled images and every new weight.

- probe: balanced accuracy of a linear classifier on the outputs of a block, averaged over place,
  of the pretrained network and of an untrained one; 30 labels a class.
- keep: the pretrained network up to and with the block stays frozen, everything above it starts
  anew and learns the task (Yosinski et al. 2014); balanced accuracy. Block "none": all is new.
- tune: all blocks of the pretrained network learn the task, after the head; linear CKA
  (Kornblith et al. 2019) between the outputs of a block before and after, on test images.
"""

import argparse
import csv
from functools import cache
from pathlib import Path

import tlkeras as tlk

import keras  # isort: skip  (after tlkeras, which keeps TensorFlow quiet)
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

STORE = Path(__file__).resolve().parents[1] / "data" / "results" / "layers.csv"
HEADER = ("part", "task", "network", "block", "seed", "value")
PROBED = {  # the task and the feature to tell
    "letters": ("glyphs", "label"),
    "digits": ("digits", "label"),
    "styles": ("glyphs/styles", "label"),
    "lesions": ("lesions", "label"),
    "shape": ("scenes", "label"),
    "texture": ("scenes", "texture"),
    "colour": ("scenes", "colour"),
}
LABELS = {"letters": 30, "digits": 10, "styles": 100, "colour": 30}  # a class, to train blocks on
SEEDS = {"probe": range(5), "keep": range(3), "tune": range(3)}
STRENGTHS = (1e-3, 1e-2, 0.1)
STEPS, BATCH = 250, 32


@cache
def data(name: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images of 32 x 32 and labels of every split; of the letters every nineteenth."""
    task, feature = PROBED[name]
    loaded = tlk.load_task(task, image_size=32)
    splits = {s: loaded.arrays(s, "image", feature) for s in ("train", "validation", "test")}
    if name == "letters":
        for split, (x, y) in splits.items():
            some = y % 19 == 0
            splits[split] = x[some], y[some] // 19
    return splits


def drawn(name: str, per_class: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = data(name)["train"]
    rng = np.random.default_rng(seed)
    chosen = [rng.permutation(np.flatnonzero(y == c))[:per_class] for c in np.unique(y)]
    return x[np.concatenate(chosen)], y[np.concatenate(chosen)]


@cache
def network(kind: str, seed: int) -> keras.Model:
    keras.utils.set_random_seed(seed)
    return tlk.load_backbone("glyph_resnet", 32, "pretrained" if kind == "pretrained" else None)


def up_to_blocks(backbone: keras.Model) -> dict[str, keras.Model]:
    blocks = tlk.find_blocks(backbone)
    models = {name: blocks.split(name)[0] for name in blocks.names[:-1]}
    return {**models, blocks.names[-1]: backbone}


@cache
def readers(kind: str, seed: int) -> dict[str, keras.Model]:
    """For each block, the network up to there, its outputs averaged over place."""
    pool = keras.layers.GlobalAveragePooling2D
    parts = up_to_blocks(network(kind, seed))
    return {name: keras.Model(part.input, pool()(part.output)) for name, part in parts.items()}


def probe(name: str, kind: str, seed: int):
    """(block, score on test), the strength of regularisation chosen on validation."""
    splits = {**data(name), "train": drawn(name, 30, seed)}
    for block, reader in readers(kind, 0 if kind == "pretrained" else seed).items():
        seen = {s: reader.predict(x, batch_size=256, verbose=0) for s, (x, _) in splits.items()}
        scale = StandardScaler().fit(seen["train"])
        scores = {}
        for strength in STRENGTHS:
            classifier = LogisticRegression(C=strength, max_iter=200)
            with threadpool_limits(1):
                classifier.fit(scale.transform(seen["train"]), splits["train"][1])
            scores[strength] = [
                balanced_accuracy_score(splits[s][1], classifier.predict(scale.transform(seen[s])))
                for s in ("validation", "test")
            ]
        yield block, max(scores.values())[1]


def whole(name: str, kind: str, seed: int) -> keras.Model:
    keras.utils.set_random_seed(seed)
    weights = "pretrained" if kind == "pretrained" else None
    backbone = tlk.load_backbone("glyph_resnet", 32, weights)
    return tlk.add_head(backbone, classes=len(np.unique(data(name)["test"][1])))


@cache
def trainable(name: str, kept: str):
    """The model, its part up to the block `kept`, and the part above, compiled once."""
    model = whole(name, "untrained", 0)
    blocks = tlk.find_blocks(model)
    below, above = (None, model) if kept == "none" else blocks.split(kept)
    compile_for(above, 1e-2 if kept == blocks.names[-2] else 1e-3)  # a head alone learns faster
    return model, below, above


def keep(name: str, kept: str, seed: int) -> float:
    model, below, above = trainable(name, kept)
    x, y = drawn(name, LABELS[name], seed)
    fresh, known = whole(name, "untrained", seed), whole(name, "pretrained", seed)
    model.set_weights(fresh.get_weights())
    names = tlk.find_blocks(model).names
    for i in range(names.index(kept) + 1 if kept != "none" else 0):
        pairs = zip(
            tlk.find_blocks(model)[i].weights, tlk.find_blocks(known)[i].weights, strict=True
        )
        for new, old in pairs:
            new.assign(old)
    reset(above.optimizer)
    fit(above, below.predict(x, verbose=0) if below else x, y, seed)
    return score(model, name)


def compile_for(model: keras.Model, rate: float) -> None:
    decay = keras.optimizers.schedules.CosineDecay(rate, STEPS)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(decay), loss)


def reset(optimizer) -> None:
    for variable in optimizer.variables:
        variable.assign(keras.ops.zeros_like(variable))


def fit(model: keras.Model, x: np.ndarray, y: np.ndarray, seed: int) -> None:
    rng = np.random.default_rng(seed)
    passes = range(-(-STEPS * BATCH // len(y)))
    order = np.concatenate([rng.permutation(len(y)) for _ in passes])[: STEPS * BATCH]
    model.fit(x[order], y[order], batch_size=BATCH, shuffle=False, verbose=0)


def score(model: keras.Model, name: str) -> float:
    x, y = data(name)["test"]
    found = model.predict(x, batch_size=256, verbose=0).argmax(axis=-1)
    return balanced_accuracy_score(y, found)


def cka(a: np.ndarray, b: np.ndarray) -> float:
    """Linear CKA of two arrays of features, one row an image."""
    a, b = (x.reshape(len(x), -1) for x in (a, b))
    a, b = (x - x.mean(axis=0) for x in (a, b))
    a, b = a @ a.T, b @ b.T
    return float(np.sum(a * b) / np.sqrt(np.sum(a * a) * np.sum(b * b)))


@cache
def tunable(name: str) -> tuple[keras.Model, keras.Model, keras.Model]:
    model = whole(name, "pretrained", 0)
    tlk.freeze(model, tlk.policies.all_blocks(), batchnorm="frozen")
    below, head = tlk.find_blocks(model).split(tlk.find_blocks(model)[-2].name)
    compile_for(head, 1e-2)
    compile_for(model, 3e-4)
    return model, below, head


def tune(name: str, seed: int):
    """(block, CKA of its outputs before and after), then ("accuracy", on test)."""
    model, below, head = tunable(name)
    model.set_weights(whole(name, "pretrained", seed).get_weights())
    x, y = drawn(name, LABELS[name], seed)
    reset(head.optimizer)
    fit(head, below.predict(x, verbose=0), y, seed)
    seen = data(name)["test"][0][:400]
    parts = {b: tlk.find_blocks(model).split(b)[0] for b in tlk.find_blocks(model).names[:-1]}
    before = {block: part.predict(seen, verbose=0) for block, part in parts.items()}
    reset(model.optimizer)
    fit(model, x, y, seed)
    for block, part in parts.items():
        yield block, cka(before[block], part.predict(seen, verbose=0))
    yield "accuracy", score(model, name)


def measured(part: str):
    """(task, network, block, seed, value) of a part, of whatever is not stored yet."""
    known = {tuple(row[key] for key in HEADER[:5]) for row in stored()}
    blocks = tlk.find_blocks(network("pretrained", 0)).names
    for name in PROBED if part == "probe" else LABELS:
        for kind in ("pretrained", "untrained") if part == "probe" else ("pretrained",):
            for seed in SEEDS[part]:
                if part == "keep":
                    for block in ["none", *blocks]:
                        if (part, name, kind, block, str(seed)) not in known:
                            yield name, kind, block, seed, keep(name, block, seed)
                elif (part, name, kind, blocks[0], str(seed)) not in known:
                    found = probe(name, kind, seed) if part == "probe" else tune(name, seed)
                    for block, value in list(found):
                        yield name, kind, block, seed, value


def stored() -> list[dict]:
    if not STORE.exists():
        return []
    with STORE.open() as file:
        return list(csv.DictReader(file))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=SEEDS, action="append")
    for part in parser.parse_args().part or SEEDS:
        for row in measured(part):
            new = not STORE.exists()
            with STORE.open("a", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                if new:
                    writer.writerow(HEADER)
                writer.writerow((part, *row[:-1], f"{row[-1]:.4f}"))
            print(part, *row[:-1], f"{row[-1]:.3f}", flush=True)


if __name__ == "__main__":
    main()
