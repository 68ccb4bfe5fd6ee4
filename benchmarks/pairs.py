"""Times tlkeras and common alternatives in pairs: first one, then the other, three times.

    python benchmarks/pairs.py          # all; or names: head two_stage progressive step backup
    python benchmarks/pairs.py --rounds 1 head

Each pair uses the same images, batches and initial weights in one process. The alternatives are
written as in their guides: the Keras guide "Transfer learning & fine-tuning" (a frozen base model,
`fit`; then unfreeze, a low learning rate, `fit` again), a loop of this over more and more blocks,
and `keras.optimizers.MultiOptimizer`. Times include all tracing, except in `step`, which warms up
first. Results go to benchmarks/results/pairs.csv with versions and machine.
"""

import argparse
import os
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from results import write

import tlkeras as tlk

SIZE, IMAGES, TESTED, BATCH = 64, 1000, 200, 32
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def images(count=IMAGES, tested=TESTED):
    """Return handwritten digits at 64x64 with a little noise, repeated if there are too few."""
    task = tlk.load_task("digits", image_size=SIZE)
    x, y = task.arrays("train")
    rows = np.arange(count) % len(x)
    noise = np.random.default_rng(0).normal(0, 1, (count, SIZE, SIZE, 1)).astype("float32")
    validation = tuple(part[:tested] for part in task.arrays("validation"))
    return (x[rows] + noise, y[rows]), validation


def model():
    keras.utils.set_random_seed(0)
    backbone = tlk.load_backbone("glyph_resnet", image_size=SIZE)
    return tlk.add_head(backbone, 10), backbone


def guide_fit(network, rate, epochs, data, validation):
    network.compile(keras.optimizers.Adam(rate), LOSS, metrics=["accuracy"])
    history = network.fit(
        *data, batch_size=BATCH, epochs=epochs, validation_data=validation, verbose=0
    ).history
    return history["val_accuracy"][-1]


def guide(rounds, data, validation):
    """Train as in the guide: `fit` on a frozen backbone, then again with more blocks learning."""
    network, backbone = model()
    blocks = {block.name: block.layers for block in tlk.find_blocks(backbone)}
    for unfrozen, rate, epochs in rounds:
        backbone.trainable = unfrozen > 0
        for number, name in enumerate(blocks):  # each layer: the backbone's flag may not reach it
            for layer in blocks[name]:
                layer.trainable = number >= len(blocks) - unfrozen
        accuracy = guide_fit(network, rate, epochs, data, validation)
    return accuracy


def staged(plan, data, validation, **options):
    network, _ = model()
    run = tlk.fit_stages(
        network, plan, data, validation, optimizer=keras.optimizers.Adam(), batch_size=BATCH,
        seed=0, verbose=0, **options,
    )  # fmt: skip
    return run.history["val_accuracy"][-1]


def timed(function, *arguments):
    start = time.perf_counter()
    found = function(*arguments)
    return time.perf_counter() - start, found


def pair(name, ours, rivals, rounds):
    """Return the rows of a comparison; `rivals` are (name, function), which return a figure."""
    rows = []
    for number in range(rounds):
        both = [("tlkeras", ours), *rivals]
        for who, function in both if number % 2 else both[::-1]:  # alternate: the first warms up
            seconds, figure = timed(function)
            rows.append((name, who, number, seconds, figure))
            print(f"{name:12} {who:20} {seconds:8.2f} s  {figure:.4f}", flush=True)
    return rows


def head(rounds):
    data, validation = images()
    plan = tlk.recipes.head_only(10, 1e-2)
    return pair(
        "head", lambda: staged(plan, data, validation),
        [("Keras guide", lambda: guide([(0, 1e-2, 10)], data, validation))], rounds,
    )  # fmt: skip


def two_stage(rounds):
    data, validation = images()
    plan = tlk.recipes.two_stage(5, 10, 1e-2, 1e-4)
    stages = [(0, 1e-2, 5), (1, 1e-4, 10)]
    return pair(
        "two_stage", lambda: staged(plan, data, validation),
        [("Keras guide", lambda: guide(stages, data, validation))], rounds,
    )  # fmt: skip


def progressive(rounds):
    data, validation = images()
    plan = tlk.recipes.progressive(5, 5, 1e-2, 1e-4, blocks=4)
    stages = [(0, 1e-2, 5), *((n, 1e-4, 5) for n in range(1, 5))]
    return pair(
        "progressive", lambda: staged(plan, data, validation),
        [("loop of fit", lambda: guide(stages, data, validation))], rounds,
    )  # fmt: skip


def step(rounds):
    """Time a training step with all blocks learning, after a warm-up."""
    data, _ = images(BATCH)
    rates = tlk.optimizers.layerwise_decay(0.8)

    def per_block(network):
        return tlk.optimizers.discriminative(keras.optimizers.AdamW(1e-5), network, rates)

    def multi(network):
        blocks = tlk.find_blocks(network)
        of_block = tlk.optimizers.block_rates(rates, blocks)
        optimizers = {name: keras.optimizers.AdamW(1e-5 * of_block[name]) for name in of_block}
        home = {id(weight): block.name for block in blocks for weight in block.weights}
        return keras.optimizers.MultiOptimizer(lambda weight: optimizers[home[id(weight)]])

    makers = {"tlkeras": per_block, "AdamW": lambda network: keras.optimizers.AdamW(1e-5)}
    if hasattr(keras.optimizers, "MultiOptimizer"):
        makers["MultiOptimizer"] = multi
    networks = {}
    for name, make in makers.items():
        network, _ = model()
        tlk.freeze(network, tlk.policies.all_blocks())
        network.compile(make(network), LOSS)
        network.fit(*data, batch_size=BATCH, epochs=5, verbose=0)
        networks[name] = network
    x, y = (np.concatenate([part] * 20) for part in data)
    rows = []
    for number in range(3 * rounds):
        for name, network in networks.items():
            seconds, _ = timed(lambda n=network: n.fit(x, y, batch_size=BATCH, verbose=0))
            rows.append(("step", name, number, seconds, seconds / 20))
            print(f"step         {name:20} {seconds / 20 * 1000:8.1f} ms", flush=True)
    return rows


def backup(rounds):
    """Time epochs of about ten seconds, all blocks learning, with and without a backup."""
    data, validation = images(3000)
    plan = tlk.recipes.full(3, 1e-5)

    def saved():
        with tempfile.TemporaryDirectory() as folder:
            return staged(plan, data, validation, backup_dir=folder)

    return pair("backup", saved, [("without", lambda: staged(plan, data, validation))], rounds)


BENCHMARKS = {f.__name__: f for f in (head, two_stage, progressive, step, backup)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(BENCHMARKS), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    for name in options.names:
        rows = BENCHMARKS[name](options.rounds)
        write("pairs", ("bench", "who", "round", "seconds", "figure"), rows, key=name)


if __name__ == "__main__":
    main()
