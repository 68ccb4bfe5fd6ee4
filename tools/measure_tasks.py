"""Pretrained backbones on every offline task, compared with pixels and training from scratch.

    python tools/measure_tasks.py                         # everything, hours on 2 cores
    python tools/measure_tasks.py --preset glyph_vit --task lesions --method frozen
    python tools/measure_tasks.py --table                 # only prints the stored scores
    python tools/measure_tasks.py --cards                 # writes them into the presets' cards

Writes data/results/tasks.csv, one row per (preset, task, method, labels per class, seed), as it
goes. Stored rows are not measured again. Scores are balanced accuracy on test data (the mean over
classes of the share that is recognised). The depth of a probe's frozen features, the strength of
its regularisation, and the learning rate of training are chosen on validation data, with separate
draws of labels.
"""

import argparse
import functools
import itertools
import time

import tlkeras as tlk
from tlkeras.utils.tables import text_table

import keras  # isort: skip  (after tlkeras, which keeps TensorFlow quiet)
import keras_hub
import numpy as np
from rows import ROOT, Row, Rows
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from trials import accuracy, class_weights, drawn, forget, in_passes

from tlkeras.blocks.graph import split  # isort: skip  (after keras)

PRESETS_FOLDER = ROOT / "data" / "presets"
ROWS = Rows(
    "tasks", ("preset", "task", "method", "labels_per_class", "seed"),
    ("score", "seconds", "choice"),
)  # fmt: skip
PRESETS = ("efficientnet_lite0", "glyph_resnet", "glyph_resnet_small", "glyph_vit", "scene_clip")
TASKS = ("clothes", "digits", "glyphs/digits", "glyphs/styles", "lesions", "scenes")
SIZES = {  # pixels; all others: 32
    **{("efficientnet_lite0", task): 96 for task in TASKS},
    **{("scene_clip", task): 64 for task in ("lesions", "scenes")},
}
METHODS = ("pixels", "random", "frozen", "scratch", "fine-tuned")
UNTRAINED = ("pixels", "random", "frozen")  # methods in which only a linear classifier is fitted
LABELS = (5, 10, 30, 0)  # 0: all
SEEDS = {5: range(5), 10: range(5), 30: range(5), 0: range(3)}
CHOICE_SEED = 100
FEW, ALL = (32, 16, 200), (6, 32, 600)  # passes, images per batch, minimum number of steps
STRENGTHS = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
CARD_HEADING = "## Targets"
CARD_TEXT = """
Balanced accuracy on test data in %, mean and standard deviation over five draws of the labelled
images (with all labels: three runs, or one where nothing is random), from `tools/measure_tasks.py`
(`data/results/tasks.csv`). Pixels: logistic regression on the pixels. Frozen: logistic regression
on the pooled outputs of one block; block and strength are chosen on validation data for each number
of labels. Random: the same on one untrained network. Scratch: the same network without pretraining,
trained for 32 passes and at least 200 steps with few labels, for six passes and at least 600 steps
with all. Fine-tuned: as many steps for the head, then for the whole network with the statistics of
BatchNorm frozen. Both use mixed_bfloat16 and the better of two learning rates on validation data,
chosen with ten labels per class for few labels and with all labels for all. Three of these rules
were adopted after others had been scored on test data: the choice of the block (before: the last;
for `glyph_vit`, at one time, the first or the last), the number of steps (fewer at 30 labels and
with all) and the rate for all labels (that of ten). Images are 32x32, but 64x64 for `scene_clip` on
`lesions` and `scenes`, and 96x96 for `efficientnet_lite0`. Most rows with `efficientnet_lite0`,
`clothes` or untrained networks were measured with Keras on JAX, on a GPU. All tasks but `clothes`
and `digits` are synthetic; `lesions` has no medical validity. Chapter 02 explains why training from
scratch is better than frozen features on some tasks. Empty cells have not been measured; a number
in brackets says how many draws were measured, if not all.
""".strip()
RATES = {"scratch": (1e-3, 3e-3), "fine-tuned": (1e-4, 1e-3)}


class Bench:
    """One preset on one task; arrays, features and models are made once."""

    def __init__(self, preset: str, task: str):
        self.preset, self.task = preset, task
        self.size = SIZES.get((preset, task), 32)
        loaded = tlk.load_task(task, image_size=self.size)
        self.classes = len(loaded.classes)
        self.data = {s: loaded.arrays(s) for s in ("train", "validation", "test")}
        self.features, self.models = {}, {}

    def score(self, method: str, per_class: int, seed: int) -> tuple[float, str]:
        """Return the balanced accuracy on test data, and what was chosen on validation data."""
        if method in UNTRAINED:
            depth, strength = self.chosen_probe(method, per_class)
            return self.probe(
                method, per_class, seed, depth, strength, "test"
            ), f"{depth} C={strength}"
        rate = self.chosen_rate(method, 10 if per_class else 0)
        return self.fit(method, per_class, seed, rate, "test"), f"lr={rate}"

    def seen(self, method: str) -> dict[str, dict[str, np.ndarray]]:
        """Return the inputs of linear classifiers: pixels at 32x32, or pooled block outputs."""
        if method not in self.features:
            if method == "pixels":
                small = tlk.load_task(self.task, image_size=32)
                said = {s: {"pixels": _flat(small.arrays(s)[0])} for s in self.data}
            else:
                keras.utils.set_random_seed(0)
                network = pooled_blocks(self.backbone("pretrained" if method == "frozen" else None))
                said = {s: network.predict(x, verbose=0) for s, (x, _) in self.data.items()}
            found = {depth: {s: said[s][depth] for s in said} for depth in said["train"]}
            for features in found.values():
                scale = StandardScaler().fit(features["train"])  # all images, without labels
                features.update({s: scale.transform(x) for s, x in features.items()})
            self.features[method] = found
        return self.features[method]

    def chosen_probe(self, method: str, per_class: int) -> tuple[str, float]:
        """Return the depth and strength that are best on validation data with another draw."""
        key = (method, per_class)
        if key not in self.models:
            options = itertools.product(self.seen(method), STRENGTHS)
            self.models[key] = max(
                options,
                key=lambda o: self.probe(method, per_class, CHOICE_SEED, *o, "validation"),
            )
        return self.models[key]

    def probe(
        self, method: str, per_class: int, seed: int, depth: str, strength: float, split: str
    ) -> float:
        """Return the score of logistic regression on frozen features."""
        x, chosen = self.seen(method)[depth], drawn(self.data["train"][1], per_class, seed)
        probe = LogisticRegression(C=strength, max_iter=300, class_weight="balanced")
        with threadpool_limits(1):  # many threads on little data only wait for each other
            probe.fit(x["train"][chosen], self.data["train"][1][chosen])
        return balanced_accuracy_score(self.data[split][1], probe.predict(x[split]))

    def chosen_rate(self, method: str, per_class: int) -> float:
        """Return the learning rate that is best on validation data with this many labels."""
        key, rates = (method, per_class), RATES[method]
        if key not in self.models:
            scores = [self.fit(method, per_class, CHOICE_SEED, r, "validation") for r in rates]
            self.models[key] = rates[int(np.argmax(scores))]
            print(self.preset, self.task, *key, dict(zip(rates, scores, strict=True)), flush=True)
        return self.models[key]

    def fit(self, method: str, per_class: int, seed: int, rate: float, split: str) -> float:
        """Train the whole network, from scratch or after a new head; return its score."""
        chosen = drawn(self.data["train"][1], per_class, seed)
        x, y = (part[chosen] for part in self.data["train"])
        passes, batch, least = FEW if per_class else ALL
        steps = max(least, passes * len(y) // batch)
        order = in_passes(len(y), steps * batch, np.random.default_rng(seed))
        options = {"batch_size": batch, "shuffle": False, "verbose": 0}
        options["class_weight"] = class_weights(y, self.classes)

        bottom, head, model = self.network(method, rate, steps)
        keras.utils.set_random_seed(seed)
        model.set_weights(self.new_model(method).get_weights())
        if method == "fine-tuned":
            forget(head.optimizer)
            head.fit(bottom.predict(x, verbose=0)[order], y[order], **options)
        forget(model.optimizer)
        model.fit(x[order], y[order], **options)
        return accuracy(model, *self.data[split], batch=256)

    def network(self, method: str, rate: float, steps: int) -> tuple[keras.Model, ...]:
        """Return the backbone, the head, and both together, compiled once for all seeds."""
        key = (method, rate, steps)
        if key not in self.models:
            model = self.new_model(method)
            bottom, head = tlk.find_blocks(model).split(tlk.find_blocks(model)[-2].name)
            if method == "fine-tuned":  # BatchNorm's statistics are frozen
                tlk.freeze(model, tlk.policies.all_blocks(), batchnorm="frozen")
            for part, top in ((model, rate), (head, 1e-2)):
                decay = keras.optimizers.schedules.CosineDecay(top, steps)
                loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
                part.compile(keras.optimizers.AdamW(decay), loss)
            self.models[key] = bottom, head, model
        return self.models[key]

    def new_model(self, method: str) -> keras.Model:
        weights = None if method == "scratch" else "pretrained"
        return tlk.add_head(self.backbone(weights), self.classes)

    def backbone(self, weights: str | None) -> keras.Model:
        options = {"tower": "image"} if self.preset == "scene_clip" else {}
        return tlk.load_backbone(self.preset, self.size, weights, **options)


def pooled_blocks(backbone: keras.Model) -> keras.Model:
    """Return a model of the mean and maximum of every block's outputs that can be accessed."""
    blocks = tlk.find_blocks(backbone)
    cuts = [block for block in blocks[:-1] if block.cut is not None]
    below, parts = backbone, []
    for block in reversed(cuts):
        below, part = split(below, block.cut)
        parts.insert(0, part)
    said, names = {}, [block.name for block in (*cuts, blocks[-1])]
    x = below.input
    for name, part in zip(names, (below, *parts), strict=True):
        x = part(x)
        said[name] = _pooled(x)
        if name == "stem" and isinstance(backbone.layers[-1], keras_hub.models.ViTBackbone):
            tokens = x  # the encoder is one layer, whose blocks are called one by one
            for layer in backbone.layers[-1].get_layer("vit_encoder").encoder_layers[:-1]:
                tokens = layer(tokens)
                said[layer.name] = _pooled(tokens)
    return keras.Model(below.input, said)


def _pooled(output: keras.KerasTensor) -> keras.KerasTensor:
    axes = tuple(range(1, len(output.shape) - 1))
    if not axes:
        return output
    both = keras.ops.mean(output, axes), keras.ops.max(output, axes)
    return keras.ops.concatenate(both, axis=-1)


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1)


def stored() -> list[Row]:
    return ROWS.stored


kept_bench = functools.lru_cache(maxsize=1)(Bench)


def one(preset: str, task: str, method: str, per_class: int, seed: int) -> dict[str, object]:
    bench, start = kept_bench(preset, task), time.perf_counter()
    score, choice = bench.score(method, per_class, seed)
    seconds = f"{time.perf_counter() - start:.1f}"
    return {"score": score, "seconds": seconds, "choice": choice}


def measure(preset: str, task: str, methods: list[str], labels: list[int]) -> None:
    """Measure the rows that are not stored yet, one at a time."""
    for method, per_class in itertools.product(methods, labels):
        name = "" if method == "pixels" else preset
        for seed in SEEDS[per_class] if method not in UNTRAINED or per_class else [0]:
            what = (task, method, per_class, seed)
            ROWS.once((name, *what), one, preset, *what)


def scores(task: str, method: str, preset: str, labels: int, rows: list[Row]) -> list[float]:
    """Return the stored scores in %, one per seed."""
    key = ("" if method == "pixels" else preset, task, method, str(labels))
    return [100 * float(r["score"]) for r in rows if tuple(r[k] for k in ROWS.key[:4]) == key]


def cell(found: list[float], labels: int) -> str:
    """Return mean and standard deviation over seeds, and their number if not all; "" if none."""
    spread = f" ± {np.std(found):.1f}" if len(found) > 1 else ""
    missing = len(found) < len(SEEDS[labels]) and (labels or len(found) > 1)
    some = f" ({len(found)})" if missing else ""
    return f"{np.mean(found):.1f}{spread}{some}" if found else ""


def table() -> str:
    """Return a table with one line per (task, method, preset)."""
    rows, lines = stored(), []
    for key in sorted({(r["task"], METHODS.index(r["method"]), r["preset"]) for r in rows}):
        task, method, preset = key[0], METHODS[key[1]], key[2]
        cells = (cell(scores(task, method, preset, n, rows), n) for n in LABELS)
        lines.append((task, method, preset, *cells))
    return text_table(lines, ("task", "method", "preset", "5", "10", "30", "all"))


def targets(preset: str) -> str:
    """Return the section of a preset's card with the stored scores."""
    rows = stored()
    lines = [
        CARD_HEADING, "", CARD_TEXT, "",
        "| task | labels per class | " + " | ".join(METHODS) + " |",
        "|---" * (2 + len(METHODS)) + "|",
    ]  # fmt: skip
    for task, labels in itertools.product(TASKS, LABELS):
        cells = [cell(scores(task, method, preset, labels, rows), labels) for method in METHODS]
        if any(cells[1:]):
            lines.append(f"| {task} | {labels or 'all'} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write_cards() -> None:
    """Write the stored scores under their heading in the card of every preset."""
    for preset in PRESETS:
        path = PRESETS_FOLDER / preset / "card.md"
        before, rebuild, after = path.read_text("utf-8").partition("## Rebuild it\n")
        before = before.partition(CARD_HEADING)[0]
        path.write_text(f"{before}{targets(preset)}\n{rebuild}{after}", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, action="append")
    parser.add_argument("--task", choices=TASKS, action="append")
    parser.add_argument("--method", choices=METHODS, action="append")
    parser.add_argument("--labels", type=int, choices=LABELS, action="append")
    parser.add_argument("--table", action="store_true", help="print what is stored")
    parser.add_argument("--dtype", default="float32", help="or mixed_bfloat16, on new processors")
    parser.add_argument("--cards", action="store_true", help="write what is stored into cards")
    options = parser.parse_args()
    keras.config.set_dtype_policy(options.dtype)
    if options.cards:
        write_cards()
    elif not options.table:
        for preset, task in itertools.product(options.preset or PRESETS, options.task or TASKS):
            measure(preset, task, options.method or METHODS, options.labels or LABELS)
    print(table())


if __name__ == "__main__":
    main()
