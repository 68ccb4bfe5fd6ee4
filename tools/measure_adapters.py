"""Adapters beside what they replace: accuracy, what learns, what the optimizer and a file hold.

    python tools/measure_adapters.py      # about a quarter of an hour of one quiet core

Writes data/results/adapters.csv, which chapter 10_1 reads, a row a run, as it goes: what is there
is not measured again, so it can be stopped at any time.

Every method begins with the same head: its first 200 steps on the frozen network, at 1e-2. Then
the method's own 120 steps, batches of 16, AdamW, cosine decay, no choice of epoch: methods differ
in what learns, and in their rate. That is the best of seven on the validation images of a draw that
is not used again (part `rates`; `head`: again the head alone). Part `draws`: five others, scored on
test. BatchNorm stays as it is throughout.

Columns: `validation` is balanced accuracy on validation, `score` the same on test; `seconds` those
of one core for the method's own steps, without tracing; `parameters` those that learn; `optimizer`
what AdamW remembers of them and `saved` what must be kept of a task, both in KiB.
"""

import functools
import time
from collections.abc import Callable

import tlkeras as tlk

import keras  # isort: skip  (after tlkeras, which keeps TensorFlow quiet)
import numpy as np
from measure_depths import load as load_at_32
from rows import Rows
from trials import accuracy, drawn, fit, new_head

ROWS = Rows(
    "adapters", ("part", "network", "task", "labels_per_class", "method", "rate", "seed"),
    ("validation", "score", "seconds", "parameters", "optimizer", "saved"),
)  # fmt: skip
CASES = {  # network, task, labels a class
    ("glyph_vit", "blinds", 30): ("head", "last block", "LoRA", "bottleneck", "full"),
    ("efficientnet_lite0", "clothes", 30): ("head", "last block", "LoRA", "full"),
}
SIDE = {"glyph_vit": 32, "efficientnet_lite0": 64}
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
SEEDS, RATE_SEED = range(5), 100
HEAD_RATE, HEAD_STEPS = 1e-2, 200
STEPS, BATCH, RANK, WIDTH = 120, 16, 4, 32
Data = dict[str, tuple[np.ndarray, np.ndarray]]


@functools.cache
def load(task: str, labels: int, seed: int) -> Data:
    """The splits with a draw of training images."""
    splits = whole(task)
    x, y = splits["train"]
    some = drawn(y, labels, seed)
    return splits | {"train": (x[some], y[some])}


@functools.cache
def whole(task: str) -> Data:
    if task == "blinds":
        return load_at_32(task)
    clothes = tlk.load_task(task, image_size=SIDE["efficientnet_lite0"])
    return {split: clothes.arrays(split) for split in ("train", "validation", "test")}


def with_bottlenecks(backbone: keras.Model, width: int) -> keras.Model:
    """A vision transformer with two small Dense layers after each block (Houlsby et al. 2019)."""
    *_, scaled, vit = backbone.layers
    encoder = vit.get_layer("vit_encoder")
    x = keras.Model(vit.input, encoder.input)(scaled.output)
    for block in encoder.encoder_layers:
        x = block(x)
        small = keras.layers.Dense(width, "gelu")(x)
        x = x + keras.layers.Dense(x.shape[-1], kernel_initializer="zeros")(small)
    return keras.Model(backbone.input, encoder.layer_norm(x))


def flat(model: keras.Model) -> list[keras.Layer]:
    inside = [flat(x) if isinstance(x, keras.Model) else [x] for x in model.layers]
    return [layer for layers in inside for layer in layers]


def prepared(network: str, method: str, classes: int) -> keras.Model:
    """A network with a head, open as the method has it."""
    backbone = tlk.load_backbone(network, image_size=SIDE[network])
    policies = {
        "head": tlk.policies.head_only(),
        "last block": tlk.policies.last_blocks(1),
        "full": tlk.policies.all_blocks(),
    }
    if method == "bottleneck":
        known = {id(weight) for weight in backbone.weights}
        model = tlk.add_head(with_bottlenecks(backbone, WIDTH), classes)
        for layer in flat(model):
            layer.trainable = not known & {id(weight) for weight in layer.weights}
        return model
    model = tlk.add_head(backbone, classes)
    if method == "LoRA":
        tlk.flavors.lora.add(model, RANK, seed=0)
    else:
        tlk.freeze(model, policies[method])
    return model


class Learner:
    """A method on a network; made and traced once for many runs."""

    def __init__(self, network: str, method: str, classes: int):
        self.method = method
        self.model = prepared(network, method, classes)
        self.features = keras.Model(self.model.input, self.model.layers[-2].input)  # before dropout
        vector = keras.Input(self.features.output.shape[1:])
        self.head = keras.Model(vector, self.model.layers[-1](self.model.layers[-2](vector)))
        self.learning = self.model.trainable_variables
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        for part in (self.model, self.head):
            part.compile(keras.optimizers.AdamW(), loss, jit_compile=False)
        self.start = self.model.get_weights()

    def train(self, x: np.ndarray, y: np.ndarray, seed: int, rate: float) -> float:
        """CPU seconds of the method's own steps."""
        keras.utils.set_random_seed(seed)
        head = new_head(self.start)
        self.model.set_weights(self.start)
        self.model.layers[-1].set_weights(head)
        rng, features = np.random.default_rng(seed), self.features.predict(x, 100, verbose=0)
        fit(self.head, features, y, HEAD_RATE, HEAD_STEPS, BATCH, rng)
        clock = time.process_time()
        part, seen = (self.head, features) if self.method == "head" else (self.model, x)
        fit(part, seen, y, rate, STEPS, BATCH, rng)
        return time.process_time() - clock

    def score(self, x: np.ndarray, y: np.ndarray) -> float:
        return accuracy(self.model, x, y)

    def sizes(self) -> tuple[int, int, int]:
        """Parameters that learn; KiB of AdamW's memory, and of what learned."""
        part = self.head if self.method == "head" else self.model
        remembered = sum(np.prod(v.shape) * 4 for v in part.optimizer.variables)
        learned = sum(int(np.prod(v.shape)) for v in self.learning)
        return learned, round(remembered / 1024), round(4 * learned / 1024)


def ready(case: tuple, method: str) -> Learner:
    """A learner that has traced its steps, so that no run is timed tracing."""
    x, y = load(*case[1:], RATE_SEED)["train"]
    learner = Learner(case[0], method, int(y.max()) + 1)
    learner.train(x[:BATCH], y[:BATCH], 0, 1e-3)
    return learner


def measure(make: Callable[[], Learner], case: tuple, rate: float, seed: int, split: str) -> dict:
    data, learner = load(*case[1:], seed), make()
    seconds = learner.train(*data["train"], seed, rate)
    column = "validation" if split == "validation" else "score"
    sizes = dict(zip(("parameters", "optimizer", "saved"), learner.sizes(), strict=True))
    return {column: learner.score(*data[split]), "seconds": f"{seconds:.2f}"} | sizes


def main() -> None:
    for case, methods in CASES.items():
        for method in methods:
            make = functools.cache(functools.partial(ready, case, method))
            rows = []
            for rate in RATES:
                key = ("rates", *case, method, rate, RATE_SEED)
                rows.append(ROWS.once(key, measure, make, case, rate, RATE_SEED, "validation"))
            rate = float(max(rows, key=lambda row: float(row["validation"]))["rate"])
            for seed in SEEDS:
                key = ("draws", *case, method, rate, seed)
                ROWS.once(key, measure, make, case, rate, seed, "test")


if __name__ == "__main__":
    main()
