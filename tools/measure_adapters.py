"""Adapters and the methods they replace: accuracy, parameters, optimizer state and file size.

    python tools/measure_adapters.py      # about a quarter of an hour of one quiet core

Writes data/results/adapters.csv, which chapter 10_1 reads, one row per run, as it goes. Stored rows
are not measured again, so it can be stopped at any time.

Every method starts with the same head, trained for 200 steps on the frozen network at 1e-2. Then
come the method's own 120 steps: batches of 16, AdamW, cosine decay, no choice of epoch. Methods
differ in what learns and in their rate. The rate is the best of seven on the validation images of a
draw that is not used again (part `rates`; `head` trains the head alone again). Part `draws` has
five other draws, scored on test. BatchNorm does not change at any time.

Columns: `validation` is balanced accuracy on validation data, `score` the same on test data;
`seconds` is CPU time of the method's own steps, without tracing; `parameters` counts those that
learn; `optimizer` is the state of AdamW for them and `saved` what must be stored for each task,
both in KiB.
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
CASES = {  # network, task, labels per class
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
    """Return the splits, with a draw of the training images."""
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
    """Return a vision transformer with two small Dense layers per block (Houlsby et al. 2019)."""
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
    """Return a network with a head in which only the weights that the method trains learn."""
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
    """A method on a network, built and traced once for many runs."""

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
        """Train the head, then the method; return the CPU seconds of the method's own steps."""
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
        """Return the number of parameters that learn, and KiB of AdamW's state and of them."""
        part = self.head if self.method == "head" else self.model
        remembered = sum(np.prod(v.shape) * 4 for v in part.optimizer.variables)
        learned = sum(int(np.prod(v.shape)) for v in self.learning)
        return learned, round(remembered / 1024), round(4 * learned / 1024)


def ready(case: tuple, method: str) -> Learner:
    """Return a learner whose steps are traced, so that no timed run includes tracing."""
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
