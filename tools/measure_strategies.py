"""The strategies of section 1.4: what adapts a reader to an unlabelled target, and what groups one.

    python tools/measure_strategies.py               # about 6 minutes on 2 cores
    python tools/measure_strategies.py transductive  # one part; or unsupervised, or simclr

Writes data/results/strategies.csv, which chapter 04 reads: one row a strategy, source, target,
method and seed, as it goes; what is there is not measured again. Accuracy is on the target's test
split; of groups, it is that of the best one-to-one naming. Target labels are used for that, for
the column `probe` (accuracy of a linear probe with 30 labels a class, which says what is in the
features) and for the bound "target labels", and for nothing else. Settings are the papers'
or round numbers; `strokes + PCA` is stored for other sizes, too. SimCLR's views were made stronger
once, after weaker ones had grouped digits no better than an untrained network.
"""

import csv
import sys
from functools import cache
from pathlib import Path

import tlkeras as tlk

import keras  # isort: skip  (after tlkeras, which keeps TensorFlow quiet)
import numpy as np
import tensorflow as tf
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score, silhouette_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

STORE = Path(__file__).resolve().parents[1] / "data" / "results" / "strategies.csv"
HEADER = (
    "strategy", "source", "target", "method", "seed",
    "accuracy", "silhouette", "rand_index", "probe",
)  # fmt: skip
TASKS = {"printed": "glyphs/digits", "handwritten": "digits"}
DOMAINS = ("inverted", "noisy")  # of scenes; "plain" is the source
SEEDS, SIMCLR_SEEDS = range(5), range(3)
PER_CLASS, SCENES = 30, 1000  # labels of a source; scenes taken of each domain
PATCH, STROKES, CELLS, COMPONENTS = 6, 64, 3, (20, 40, 80, 160)
BATCH, STEPS, TEMPERATURE = 128, 600, 0.2


# --- data and features ---------------------------------------------------------------------------


@cache
def images(name: str, split: str, size: int = 32) -> tuple[np.ndarray, np.ndarray]:
    if name in TASKS:
        return tlk.load_task(TASKS[name], image_size=size).arrays(split)
    x, y = tlk.load_task("scenes", domain=name).arrays(split)
    return x[:SCENES], y[:SCENES]


@cache
def reader(name: str, weights: str | None = "pretrained") -> keras.Model:
    if name not in TASKS:
        return tlk.load_backbone("scene_clip", tower="image")
    backbone = tlk.load_backbone("glyph_resnet", weights=weights)
    return keras.Sequential([backbone, keras.layers.GlobalAveragePooling2D()])


def unit(vectors: np.ndarray) -> np.ndarray:
    return keras.utils.normalize(vectors)


@cache
def features(name: str, split: str) -> np.ndarray:
    return unit(reader(name).predict(images(name, split)[0], verbose=0))


@cache
def features_adabn(name: str, split: str) -> np.ndarray:
    """With the BatchNorm statistics of this domain's training images (Li et al., 2016)."""
    network = keras.models.clone_model(reader(name))
    network.set_weights(reader(name).get_weights())
    for layer in network._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0  # the next batch replaces the statistics
    network(images(name, "train")[0][:800], training=True)
    return unit(network.predict(images(name, split)[0], verbose=0))


def drawn(labels: np.ndarray, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    return np.concatenate([rng.choice(m, PER_CLASS, replace=False) for m in members])


def head(x: np.ndarray, y: np.ndarray):
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=200)).fit(x, y)


# --- transductive: labels on the source, none on the target --------------------------------------


def power(x: np.ndarray, exponent: float) -> np.ndarray:
    values, vectors = np.linalg.eigh(np.cov(x.T) + np.eye(x.shape[1]))
    return vectors * values**exponent @ vectors.T


def coral(x, y, unlabelled, test):
    """Gives source features the covariance of the target's (Sun, Feng, Saenko, 2016)."""
    scale = StandardScaler().fit(x)
    x, unlabelled, test = (scale.transform(part) for part in (x, unlabelled, test))
    moved = (x - x.mean(0)) @ power(x, -0.5) @ power(unlabelled, 0.5) + unlabelled.mean(0)
    model = head(moved, y)
    return model.predict(unlabelled), model.predict(test)


def self_training(x, y, unlabelled, test, rounds: int = 5):
    """The surest answers of each class become labels, more of them each round."""
    model, classes = head(x, y), len(np.unique(y))
    for turn in range(1, rounds + 1):
        share = len(unlabelled) * turn // (rounds * classes)
        chosen = np.argsort(-model.predict_proba(unlabelled), axis=0)[:share]
        model = head(unlabelled[chosen.T.ravel()], np.repeat(np.arange(classes), share))
    return model.predict(unlabelled), model.predict(test)


def class_centres(x, y, unlabelled, test, rounds: int = 5):
    """Centres that start from the source's answers and move (Liang, Hu, Feng, 2020)."""
    believed = head(x, y).predict_proba(unlabelled)
    for _ in range(rounds):
        centres = unit(believed.T @ unlabelled)
        believed = np.eye(len(centres))[np.argmax(unlabelled @ centres.T, axis=1)]
    return believed.argmax(1), np.argmax(test @ centres.T, axis=1)


def as_it_is(x, y, unlabelled, test):
    model = head(x, y)
    return model.predict(unlabelled), model.predict(test)


METHODS = {
    "as it is": as_it_is,
    "CORAL": coral,
    "self-training": self_training,
    "class centres": class_centres,
}


def transductive(done):
    pairs = [("printed", "handwritten"), ("handwritten", "printed")]
    pairs += [("plain", domain) for domain in DOMAINS]
    pairs += [(name, name) for name in (*TASKS, "plain")]  # a rehearsal: no shift, labels known
    for source, target in pairs:
        names = [*METHODS, *(["AdaBN"] if source in TASKS else []), "target labels"]
        todo = [(n, s) for s in SEEDS for n in names
                if ("transductive", source, target, n, str(s)) not in done]  # fmt: skip
        for name, seed in todo:
            labels = images(source, "train")[1]
            unlabelled, test = features(target, "train"), features(target, "test")
            answer, chosen = images(target, "test")[1], drawn(labels, seed)
            if name == "target labels":
                labels = images(target, "train")[1]
                chosen = drawn(labels, seed)
                found = as_it_is(unlabelled[chosen], labels[chosen], unlabelled, test)
            elif name == "AdaBN":
                x, *rest = (features_adabn(*key) for key in
                            ((source, "train"), (target, "train"), (target, "test")))  # fmt: skip
                found = as_it_is(x[chosen], labels[chosen], *rest)
            else:
                x = features(source, "train")[chosen]
                found = METHODS[name](x, labels[chosen], unlabelled, test)
            alike = silhouette_score(unlabelled, found[0], metric="cosine")
            accuracy = np.mean(found[1] == answer)
            yield "transductive", source, target, name, seed, accuracy, alike, None, None


# --- unsupervised: no labels on either side ------------------------------------------------------


def grey(x: np.ndarray) -> np.ndarray:
    """Grey, each image with mean 0 and spread 1."""
    x = x.mean(-1, keepdims=True)
    x = x - x.mean((1, 2, 3), keepdims=True)
    return (x / (x.std((1, 2, 3), keepdims=True) + 1)).astype("float32")


@cache
def letters() -> np.ndarray:
    return grey(tlk.load_task("glyphs", image_size=16).arrays("train", "image")[0])


def kernels(seed: int, learned: bool) -> tuple[np.ndarray, np.ndarray]:
    """A convolution of strokes: k-means on whitened patches of letters (Coates, Lee, Ng, 2011)."""
    rng = np.random.default_rng(seed)
    if not learned:
        return rng.normal(size=(PATCH**2, STROKES)).astype("float32"), np.zeros(STROKES, "float32")
    some = letters()[rng.choice(len(letters()), 2000, replace=False)]
    patches = np.array(keras.ops.image.extract_patches(some, PATCH, 1)).reshape(-1, PATCH**2)
    patches = patches[rng.choice(len(patches), 20_000, replace=False)]
    mean = patches.mean(0)
    values, vectors = np.linalg.eigh(np.cov((patches - mean).T))
    white = vectors * (values + 0.1) ** -0.5 @ vectors.T
    means = MiniBatchKMeans(STROKES, random_state=seed, n_init=1, batch_size=2048, max_iter=20)
    kernel = white @ means.fit((patches - mean) @ white).cluster_centers_.T
    return kernel.astype("float32"), (-mean @ kernel).astype("float32")


def strokes(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """How much of each stroke there is in each of nine cells, whether bright or dark."""
    seen = keras.ops.conv(x, kernel.reshape(PATCH, PATCH, 1, STROKES)) + bias
    seen = keras.ops.abs(seen)
    seen = keras.ops.relu(seen - keras.ops.mean(seen, axis=-1, keepdims=True))
    side = -(-seen.shape[1] // CELLS)
    pooled = keras.ops.average_pool(seen, side, side, padding="same")
    return unit(np.array(pooled).reshape(len(x), -1))


def grouped(train: np.ndarray, test: np.ndarray, target: str, seed: int) -> tuple:
    """Accuracy of k-means groups under their best naming, None, the Rand index, a linear probe."""
    labels, answer = images(target, "train")[1], images(target, "test")[1]
    group = KMeans(10, n_init=10, random_state=seed).fit(train).predict(test)
    table = np.zeros((10, 10))
    np.add.at(table, (group, answer), 1)
    named = table[linear_sum_assignment(-table)].sum() / len(answer)
    chosen = drawn(labels, seed)
    probe = head(train[chosen], labels[chosen]).score(test, answer)
    return named, None, adjusted_rand_score(answer, group), probe


def unsupervised(done):
    last = f"strokes + PCA {COMPONENTS[-1]}"
    for target in TASKS:
        parts = [grey(images(target, split, 16)[0]) for split in ("train", "test")]
        for seed in SEEDS:
            found = {}
            if ("unsupervised", "letters", target, last, str(seed)) in done:
                continue
            found["pixels"] = [unit(x.reshape(len(x), -1)) for x in parts]
            found["letters with labels"] = [features(target, s) for s in ("train", "test")]
            keras.utils.set_random_seed(seed)
            blank = reader.__wrapped__(target, None)
            found["untrained network"] = [
                unit(blank.predict(images(target, s)[0], verbose=0)) for s in ("train", "test")
            ]
            layer = kernels(seed, learned=False)
            found["untrained strokes"] = [strokes(x, *layer) for x in parts]
            layer = kernels(seed, learned=True)
            source = strokes(letters()[:4000], *layer)
            found["strokes"] = [strokes(x, *layer) for x in parts]
            for count in COMPONENTS:
                axes = PCA(count, whiten=True, random_state=seed).fit(source)
                found[f"strokes + PCA {count}"] = [
                    unit(axes.transform(x)) for x in found["strokes"]
                ]
            for name, (train, test) in found.items():
                scores = grouped(train, test, target, seed)
                yield "unsupervised", "letters", target, name, seed, *scores


# --- SimCLR on unlabelled letters (Chen et al., 2020) --------------------------------------------


def view(x: tf.Tensor, moves: keras.Model) -> tf.Tensor:
    """The same letter, elsewhere, bolder or thinner, inverted, blurred, under noise, with gaps."""

    def dice(*shape):
        return tf.random.uniform((BATCH, *(shape or (1, 1, 1))))

    x = moves(x, training=True)
    width = dice()
    bold, thin = tf.nn.max_pool2d(x, 2, 1, "SAME"), -tf.nn.max_pool2d(-x, 2, 1, "SAME")
    x = tf.where(width < 0.3, bold, tf.where(width < 0.6, thin, x))
    blur = 1.6 * dice() - 0.6
    x = blur * tf.nn.avg_pool2d(x, 3, 1, "SAME") + (1 - blur) * x
    x = x * tf.where(dice() < 0.5, 1.0, -1.0) + 0.7 * dice() * tf.random.normal(tf.shape(x))
    return x * tf.repeat(tf.repeat(tf.cast(dice(4, 4, 1) > 0.12, x.dtype), 4, 1), 4, 2)


def contrast(_, z):
    """NT-Xent: each view must find the other view of its image among all others."""
    z = keras.ops.normalize(z, axis=-1)
    count = keras.ops.shape(z)[0]
    alike = z @ keras.ops.transpose(z) / TEMPERATURE - 1e9 * keras.ops.eye(count)
    other = keras.ops.roll(keras.ops.arange(count), count // 2)
    return keras.losses.sparse_categorical_crossentropy(other, alike, from_logits=True)


def encoder() -> keras.Model:
    layers = [keras.Input((16, 16, 1))]
    for width, stride in ((32, 1), (64, 2), (128, 2), (128, 1)):
        layers.append(keras.layers.Conv2D(width, 3, stride, "same", use_bias=False))
        layers += [keras.layers.BatchNormalization(), keras.layers.ReLU()]
    return keras.Sequential([*layers, keras.layers.GlobalAveragePooling2D()])


def simclr(done):
    for seed in SIMCLR_SEEDS:
        if ("unsupervised", "letters", "handwritten", "SimCLR", str(seed)) in done:
            continue
        keras.utils.set_random_seed(seed)
        moves = keras.Sequential(
            [
                keras.layers.RandomRotation(0.08, fill_mode="nearest"),
                keras.layers.RandomZoom(0.4, 0.4, fill_mode="nearest"),
                keras.layers.RandomTranslation(0.2, 0.2, fill_mode="nearest"),
            ]
        )
        data = tf.data.Dataset.from_tensor_slices(letters()).shuffle(len(letters()), seed)
        data = data.repeat().batch(BATCH, drop_remainder=True)
        data = data.map(
            lambda x, m=moves: (tf.concat([view(x, m), view(x, m)], 0), tf.zeros(2 * BATCH))
        )
        network = encoder()
        tail = [keras.layers.Dense(128, "relu"), keras.layers.Dense(64)]
        rate = keras.optimizers.schedules.CosineDecay(2e-3, STEPS)
        whole = keras.Sequential([network, *tail])
        whole.compile(
            keras.optimizers.AdamW(rate, weight_decay=0.01, global_clipnorm=1.0), contrast
        )
        for name, steps in (("SimCLR untrained", 0), ("SimCLR", STEPS)):
            if steps:
                end = whole.fit(data.prefetch(2), steps_per_epoch=steps, shuffle=False, verbose=0)
                print("loss", end.history["loss"][-1], "chance", np.log(2 * BATCH - 1))
            for target in TASKS:
                parts = [
                    unit(network.predict(grey(images(target, s, 16)[0]), verbose=0))
                    for s in ("train", "test")
                ]
                scores = grouped(*parts, target, seed)
                yield "unsupervised", "letters", target, name, seed, *scores


PARTS = {"transductive": transductive, "unsupervised": unsupervised, "simclr": simclr}


def main() -> None:
    rows = []
    if STORE.exists():
        with STORE.open(newline="") as file:
            rows = list(csv.reader(file))[1:]
    done = {tuple(row[:5]) for row in rows}
    for part in sys.argv[1:] or PARTS:
        for row in PARTS[part](done):
            row = [f"{v:.4f}" if isinstance(v, float) else "" if v is None else str(v) for v in row]
            if tuple(row[:5]) in done:
                continue
            print(*row, flush=True)
            rows.append(row)
            with STORE.open("w", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows([HEADER, *rows])


if __name__ == "__main__":
    main()
