"""Times a folder of photographs from files to a trained model, beside the Keras guide's way.

    python benchmarks/photos.py                        # 2,000 photographs, three rounds
    python benchmarks/photos.py --images 200 --rounds 1 --epochs 2 2

The photographs are synthetic: crops of 500x375, as JPEG, of the two that scikit-learn ships, with
colours shifted at random. The five classes are three places in them and two lights, so that a
network has something to learn. Both ways read the same files, in processes of their own, with the
same network, image size, batches, epochs and rates:

    tlkeras       `tlkeras fit FOLDER`
    ... again     the same with another seed: what the network puts out is found, not computed
    Keras guide   `image_dataset_from_directory`, a frozen backbone, `fit`; then its last block
                  unfrozen, a low rate, `fit` again ("Transfer learning & fine-tuning")
    ... cached    the same with `.cache()`, which the guide leaves to the reader

Whole runs take the same epochs, and `... to its accuracy` is how long a way takes, start included,
until it first has the best validation accuracy that the guide's way ever has.

Results go to benchmarks/results/photos.csv with versions and machine.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from PIL import Image, ImageEnhance

NETWORK, SIZE, BATCH, RATES = "efficientnet_lite0", 128, 32, (1e-2, 3e-4)
CLASSES = {  # photograph, where the middle of a crop may be (shares of width, height), light
    "temple": ("china.jpg", (0.25, 0.5), (0.3, 0.55), 1.0),
    "trees": ("china.jpg", (0.5, 0.75), (0.45, 0.7), 1.0),
    "flower": ("flower.jpg", (0.35, 0.65), (0.35, 0.65), 1.0),
    "evening": ("china.jpg", (0.25, 0.75), (0.3, 0.7), 1.25),
    "morning": ("flower.jpg", (0.3, 0.7), (0.3, 0.7), 0.8),
}
RUN = "{}_run".format  # of `tlkeras fit`, beside the folder
SPLITS = ("train",) * 7 + ("validation",) + ("test",) * 2


# The photographs ---------------------------------------------------------------------------------


def make(folder, count, seed=0):
    """Writes `count` photographs, a folder for each class in each split."""
    from sklearn.datasets import load_sample_image

    rng = np.random.default_rng(seed)
    sources = {name: Image.fromarray(load_sample_image(name)) for name, *_ in CLASSES.values()}
    for name, (source, across, down, light) in CLASSES.items():
        for number in range(count // len(CLASSES)):
            split = SPLITS[number % len(SPLITS)]
            path = folder / split / name / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            photograph(sources[source], across, down, light, rng).save(path, quality=90)


def photograph(source, across, down, light, rng):
    """A crop at a random place, of random size, sometimes mirrored, in a light of its own."""
    width = rng.uniform(160, 300)
    height = 0.75 * width
    left, top = (
        np.clip(rng.uniform(*span) * length - extent / 2, 0, length - extent)
        for span, length, extent in zip((across, down), source.size, (width, height), strict=True)
    )
    box = (left, top, left + width, top + height)
    image = source.resize((500, 375), Image.Resampling.BICUBIC, box)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = change(image).enhance(rng.uniform(0.7, 1.3))
    tint = np.array([light, 1, 1 / light]) * rng.uniform(0.88, 1.12, 3)
    noisy = np.asarray(image) * tint + rng.normal(0, 6, (375, 500, 3))
    return Image.fromarray(np.clip(noisy, 0, 255).astype("uint8"))


# The two ways, each in a process of its own ------------------------------------------------------


def watch(reached):
    """A callback that notes in `reached` the time and the validation accuracy of every epoch."""
    import keras

    def note(epoch, logs):
        reached.append((time.time(), logs["val_accuracy"]))

    return keras.callbacks.LambdaCallback(on_epoch_end=note)


def ours(folder, epochs, seed=0):
    """`tlkeras fit`, with the settings that the guide's way is given, too."""
    import tlkeras as tlk
    from tlkeras.cli import fit, main

    reached, fit_stages = [], tlk.fit_stages

    def watched(*given, callbacks=(), **options):
        return fit_stages(*given, callbacks=[*callbacks, watch(reached)], **options)

    tlk.fit_stages, (head, tune) = watched, epochs
    fit.SETTINGS["two_stage"] = {
        "head_epochs": head, "head_lr": RATES[0], "tune_epochs": tune, "tune_lr": RATES[1],
    }  # fmt: skip
    arguments = ["--backbone", NETWORK, "--image-size", str(SIZE), "--out", RUN(folder)]
    arguments += ["--seed", str(seed)]
    main.main(["fit", str(folder), *arguments, "--force", "--json"])
    print(json.dumps({"reached": reached}))


def guide(folder, epochs, cached):
    """The Keras guide's way; prints what `tlkeras fit --json` prints, as far as it is used."""
    import keras

    import tlkeras as tlk

    def read(split):
        data = keras.utils.image_dataset_from_directory(
            folder / split, image_size=(SIZE, SIZE), batch_size=BATCH, seed=0, verbose=False
        )
        return (data.cache() if cached else data).prefetch(2)

    keras.utils.set_random_seed(0)
    train, validation, test = map(read, ("train", "validation", "test"))
    backbone = tlk.load_backbone(NETWORK, image_size=SIZE)
    blocks = tlk.find_blocks(backbone)  # the network lies in a model that scales pixels
    backbone.trainable = False
    inputs = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.GlobalAveragePooling2D()(backbone(inputs, training=False))
    x = keras.layers.Dropout(0.2)(x)
    model = keras.Model(inputs, keras.layers.Dense(len(CLASSES))(x))
    start, reached = time.perf_counter(), []
    for rate, count in zip(RATES, epochs, strict=True):
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
        model.fit(
            train, epochs=count, validation_data=validation, verbose=0, shuffle=False,
            callbacks=[watch(reached)],
        )  # fmt: skip
        backbone.trainable = True
        for block in blocks:
            for layer in block.layers:
                still = isinstance(layer, keras.layers.BatchNormalization)
                layer.trainable = block is blocks[-1] and not still
    seconds = time.perf_counter() - start
    print(json.dumps({
        "test_accuracy": model.evaluate(test, verbose=0, return_dict=True)["accuracy"],
        "train_seconds": seconds,
    }))  # fmt: skip
    print(json.dumps({"reached": reached}))


def parts(folder):
    """What reading takes, and the first pass through the frozen network; figures of one process."""
    import tlkeras as tlk
    from tlkeras.tasks import decoding

    def timed(function):
        start = time.perf_counter()
        found = function()
        return time.perf_counter() - start, found

    paths = sorted(folder.rglob("*.jpg"))
    decode, _ = timed(lambda: decoding.read(paths, (SIZE, SIZE), 255.0))
    load, task = timed(lambda: tlk.load_task(folder, image_size=SIZE))
    model = tlk.add_head(tlk.load_backbone(NETWORK, image_size=SIZE), len(CLASSES))
    cache = tlk.FeatureCache()
    how = {"cache": cache, "seed": 0, "verbose": 0}
    plan = tlk.recipes.head_only(1, RATES[0])
    first, _ = timed(lambda: tlk.fit_stages(model, plan, task.train, task.validation, **how))
    again, _ = timed(lambda: tlk.fit_stages(model, plan, task.train, task.validation, **how))
    trained = task.counts["train"] + task.counts["validation"]
    print(json.dumps({
        "index": [load - decode, len(paths) / (load - decode)],
        "decode": [decode, len(paths) / decode],
        "features": [first - again, trained / (first - again)],
        "head epoch": [again, trained / again],
    }))  # fmt: skip


def predict(folder):
    """`tlkeras predict` for all the photographs, and for one of them, with the run of `ours`."""
    found = {}
    for name, files in (("predict", folder), ("first prediction", next(folder.rglob("*.jpg")))):
        command = [sys.executable, "-m", "tlkeras", "predict", RUN(folder), str(files)]
        start = time.perf_counter()
        done = subprocess.run([*command, "--json"], check=True, stdout=subprocess.PIPE, text=True)
        seconds = time.perf_counter() - start
        found[name] = [seconds, json.loads(done.stdout)["images_per_second"]]
    print(json.dumps(found))


def process(way, folder, epochs):
    """Runs a way in a fresh process: the seconds that took, start included, and what it printed,
    among it the seconds since the start and the validation accuracy of every epoch."""
    command = [sys.executable, __file__, "--way", way, "--folder", str(folder)]
    command += ["--epochs", *map(str, epochs)]
    start = time.time()
    kept = {"TLKERAS_DATA_DIR": f"{folder}_kept"}
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | kept
    )
    seconds, found = time.time() - start, {}
    for line in done.stdout.splitlines():
        found |= json.loads(line) if line.startswith("{") else {}
    found["reached"] = [(when - start, accuracy) for when, accuracy in found.get("reached", [])]
    return seconds, found


WAYS = {
    "tlkeras": ours,
    "tlkeras, again": lambda folder, epochs: ours(folder, epochs, seed=1),
    "Keras guide": lambda folder, epochs: guide(folder, epochs, cached=False),
    "Keras guide, cached": lambda folder, epochs: guide(folder, epochs, cached=True),
    "parts": lambda folder, epochs: parts(folder),
    "predict": lambda folder, epochs: predict(folder),
}


def compare(folder, epochs, rounds):
    """Rows: what, round, seconds, and accuracy on test (of a part: images a second)."""
    rows = []
    for number in range(rounds):
        shutil.rmtree(f"{folder}_kept", ignore_errors=True)
        mine, guides = list(WAYS)[:2], list(WAYS)[2:4]
        trained = mine + guides if number % 2 else guides + mine
        reached = {}
        for way in [*trained, "parts", "predict"]:
            seconds, found = process(way, folder, epochs)
            reached[way] = found.pop("reached")
            if way in ("parts", "predict"):
                rows += [(name, number, *figures) for name, figures in found.items()]
            else:
                rows.append((way, number, seconds, found["test_accuracy"]))
                rows.append((f"{way}: training", number, found["train_seconds"], float("nan")))
                for stage in found.get("stages", []):
                    rows.append((f"{way}: {stage['name']}", number, stage["seconds"], float("nan")))
            print(way, f"{seconds:.1f} s", json.dumps(found)[:300], flush=True)
        wanted = max(accuracy for _, accuracy in reached["Keras guide"])
        for way in trained:
            first = min((when for when, got in reached[way] if got >= wanted), default=np.nan)
            rows.append((f"{way}: to its accuracy", number, first, wanted))
            print(way, f"to {wanted:.3f} on validation: {first:.1f} s", flush=True)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, nargs=2, default=[10, 20], metavar="N")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="keep the photographs there; default: nowhere")
    options = parser.parse_args()
    if options.way:
        WAYS[options.way](options.folder, options.epochs)
        return
    from results import write

    with tempfile.TemporaryDirectory() as place:
        folder = options.folder or Path(place) / "photos"
        make(folder, options.images)
        found = compare(folder, options.epochs, options.rounds)
    rows = [(options.images, *row) for row in found]
    write("photos", ("images", "what", "round", "seconds", "figure"), rows, str(options.images))


if __name__ == "__main__":
    main()
