"""How much a small student learns from a teacher: soft answers, temperatures, unlabelled images.

    python tools/measure_distillation.py         # about a quarter of an hour of one core
    python tools/measure_distillation.py --size  # only size and latency; needs ai_edge_litert

Writes data/results/distillation.csv, which chapter 08_06 reads, one row per run, as it goes. Stored
rows are not measured again. Task `clothes`: 3,000 training images, of which 30 per class, drawn by
the seed, are labelled.

The teacher is a head on the frozen `efficientnet_lite0` after block4-5, at 64 pixels. Its logits
are computed once for every training image and stored. Student and controls differ only in their
targets and images: the same small network (28 pixels), 300 steps of AdamW with cosine decay,
batches of 64, no choice of epoch and no augmentation. (Flips and shifts, tried on validation data
with the draw 100, made both the student alone and the distilled one worse in so few steps.)

Part "search" chooses the rate among 1e-3, 3e-3 and 1e-2, by the mean validation accuracy of two
draws that are not used again, for the student alone and for soft answers on all images. The other
methods use the latter rate if they train on all images, else the former. Part "test": five draws.
Part "size": the same models as LiteRT files, one image at a time on one thread.

Methods. alone: the labels. soft, labelled: the teacher's answers on the labelled images; with
"half": averaged with the labels. soft, all: answers on all 3,000 images. surest guess, all: only
the class that the teacher finds most likely. poor teacher: like soft, all, but the teacher has five
labels per class. truth, all: all 3,000 labels. soft, all labels: like soft, all, but the teacher
has all labels.

The first seven of RUNS are stored so far; the same command measures the rest.

Columns: `temperature`, `rate`; `validation` and `score`, accuracy on 1,000 and 2,000 images;
`teacher`, the accuracy of the teacher on the same images (validation in a search, else test);
`seconds`, CPU time of training the student. In part "size": `parameters`, `kilobytes` of the LiteRT
file, `milliseconds` per image.
"""

import argparse
import itertools
import tempfile
import time
from pathlib import Path

import tlkeras as tlk

import keras  # isort: skip  (after tlkeras, which keeps TensorFlow quiet)
import numpy as np
from rows import Rows
from trials import cosine, forget, in_passes

ROWS = Rows(
    "distillation", ("part", "method", "temperature", "rate", "seed"),
    ("validation", "score", "teacher", "seconds", "parameters", "kilobytes", "milliseconds"),
)  # fmt: skip
RATES, SEARCH, SEEDS = (1e-3, 3e-3, 1e-2), (100, 101), range(5)
SIZE, CLASSES, BATCH, STEPS = 64, 10, 64, 300
RUNS = [  # the most important first
    ("soft, all", 1),
    ("alone", 1),
    ("soft, labelled", 1),
    ("surest guess, all", 1),
    ("poor teacher", 1),
    ("soft, all", 4),
    ("soft, all", 16),
    ("soft, labelled, half", 1),
    ("truth, all", 1),
    ("soft, all labels", 1),
]
FEW = ("alone", "soft, labelled", "soft, labelled, half")  # few images: use the rate of "alone"
layers = keras.layers


def new_student() -> keras.Model:
    start = keras.Input((28, 28, 3))
    x = layers.Rescaling(1 / 127.5, -1)(start)
    for filters, stride in ((16, 2), (32, 2), (64, 1), (80, 2)):
        x = layers.Conv2D(filters, 3, stride, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
    x = layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(start, layers.Dense(CLASSES)(x))


def softened(temperature: keras.Variable):
    """Return the loss of a student whose targets are logits, with Hinton's factor T squared."""

    def loss(theirs, ours):
        soft = keras.ops.softmax(theirs / temperature)
        own = keras.losses.categorical_crossentropy(soft, ours / temperature, from_logits=True)
        return temperature**2 * own

    return loss


class Bench:
    """Data, teachers and the student, built once."""

    def __init__(self) -> None:
        task = tlk.load_task("clothes", image_size=SIZE)
        blocks = tlk.find_blocks(tlk.load_backbone("efficientnet_lite0", SIZE))
        self.below, _ = blocks.split(blocks.names[-2])
        pooled = keras.Sequential([self.below, layers.GlobalAveragePooling2D()])
        small = layers.Resizing(28, 28)
        self.z, self.x, self.y = {}, {}, {}
        for split in ("train", "validation", "test"):
            images, self.y[split] = task.arrays(split)
            self.z[split] = pooled.predict(images, 100, verbose=0)
            self.x[split] = np.concatenate([np.asarray(small(p)) for p in np.split(images, 10)])
            if split == "train":
                self.where = {image.tobytes(): n for n, image in enumerate(images)}
        self.norm = layers.Normalization()
        self.norm.adapt(self.z["train"])
        self.temperature = keras.Variable(1.0, trainable=False)
        self.student = new_student()
        self.student.compile(keras.optimizers.AdamW(), softened(self.temperature))
        self.student.train_on_batch(np.zeros((BATCH, 28, 28, 3)), np.zeros((BATCH, CLASSES)))
        self.logits: dict[tuple[int, int], dict[str, np.ndarray]] = {}

    def drawn(self, count: int, seed: int) -> np.ndarray:
        images, _ = tlk.load_task("clothes", count, seed, SIZE).arrays("train")
        return np.array([self.where[image.tobytes()] for image in images])

    def teacher(self, count: int, seed: int) -> dict[str, np.ndarray]:
        """Return the logits of the teacher for each split, and the images it had labels of."""
        if (count, seed) not in self.logits:
            some = self.drawn(count, seed)
            keras.utils.set_random_seed(seed)
            inputs = keras.Input(self.z["train"].shape[1:])
            x = layers.Dropout(0.2)(self.norm(inputs))
            head = keras.Model(inputs, layers.Dense(CLASSES)(x))
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            head.compile(keras.optimizers.AdamW(1e-2), loss)
            epochs = max(1, STEPS * 32 // len(some))
            head.fit(self.z["train"][some], self.y["train"][some], 32, epochs, verbose=0)
            found = {split: head.predict(z, 1000, verbose=0) for split, z in self.z.items()}
            self.logits[count, seed] = found | {"some": some}
        return self.logits[count, seed]

    def lesson(self, method: str, seed: int) -> tuple[np.ndarray, np.ndarray, dict]:
        """Return the images, the target logits, and the teacher."""
        count = {"poor teacher": 5, "soft, all labels": 300}.get(method, 30)
        teacher, images = self.teacher(count, seed), self.x["train"]
        some, theirs = teacher["some"], teacher["train"]
        truth = 30.0 * np.eye(CLASSES, dtype="float32")[self.y["train"]]
        if method == "truth, all":
            return images, truth, teacher
        if method == "surest guess, all":
            return images, 30.0 * np.eye(CLASSES, dtype="float32")[theirs.argmax(1)], teacher
        if method == "alone":
            return images[some], truth[some], teacher
        if method == "soft, labelled":
            return images[some], theirs[some], teacher
        if method == "soft, labelled, half":
            chances = np.asarray(keras.ops.softmax(theirs[some])) / 2
            chances += np.eye(CLASSES)[self.y["train"][some]] / 2
            return images[some], np.log(chances + 1e-13), teacher
        return images, theirs, teacher

    def train(self, method: str, temperature: float, rate: float, seed: int):
        x, targets, teacher = self.lesson(method, seed)
        model = self.student
        keras.utils.set_random_seed(seed)
        model.set_weights(new_student().get_weights())
        forget(model.optimizer)
        self.temperature.assign(temperature)
        order = in_passes(len(x), STEPS * BATCH, np.random.default_rng(seed))
        clock = time.process_time()
        for step in range(STEPS):
            some = order[step * BATCH : (step + 1) * BATCH]
            model.optimizer.learning_rate = cosine(rate, step, STEPS)
            model.train_on_batch(x[some], targets[some])
        return model, teacher, time.process_time() - clock

    def measure(
        self, part: str, method: str, temperature: float, rate: float, seed: int
    ) -> dict[str, object]:
        model, teacher, seconds = self.train(method, temperature, rate, seed)

        def right(split: str, answers: np.ndarray) -> float:
            return float(np.mean(answers.argmax(axis=1) == self.y[split]))

        def asked(split: str) -> float:
            return right(split, model.predict(self.x[split], 500, verbose=0))

        found: dict[str, object] = {"validation": asked("validation")}
        if part == "test":
            found["score"] = asked("test")
        split = "test" if part == "test" else "validation"
        return found | {"teacher": right(split, teacher[split]), "seconds": f"{seconds:.1f}"}


def sizes() -> None:
    """Measure LiteRT files of both, from 64 x 64 pixels to logits; training changes no figure."""
    from ai_edge_litert.interpreter import Interpreter

    pixels = keras.Input((SIZE, SIZE, 3))
    blocks = tlk.find_blocks(tlk.load_backbone("efficientnet_lite0", SIZE))
    x = layers.GlobalAveragePooling2D()(blocks.split(blocks.names[-2])[0](pixels))
    scaling = layers.Normalization(mean=np.zeros(x.shape[-1]), variance=np.ones(x.shape[-1]))
    teacher = keras.Model(pixels, layers.Dense(CLASSES)(scaling(x)))
    student = keras.Model(pixels, new_student()(layers.Resizing(28, 28)(pixels)))
    for name, model in {"teacher": teacher, "student": student}.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{name}.tflite"
            spec = keras.InputSpec(shape=(1, SIZE, SIZE, 3), dtype="float32")
            model.export(path, format="litert", input_signature=[spec], verbose=False)
            reader = Interpreter(model_path=str(path), num_threads=1)
            kilobytes = path.stat().st_size / 1000
            reader.allocate_tensors()
        place, taken = reader.get_input_details()[0]["index"], []
        for image in np.random.default_rng(0).uniform(0, 255, (300, 1, SIZE, SIZE, 3)):
            reader.set_tensor(place, image.astype("float32"))
            clock = time.thread_time()
            reader.invoke()
            taken.append(time.thread_time() - clock)
        found = {"parameters": model.count_params(), "kilobytes": f"{kilobytes:.0f}"}
        found["milliseconds"] = f"{1000 * np.median(taken):.3f}"
        ROWS.add(("size", name, "", "", 0), found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", action="store_true", help="only size and latency")
    only_size = parser.parse_args().size
    if not ROWS.find("size"):
        sizes()
    if only_size:
        return
    measure = Bench().measure
    for method, rate, seed in itertools.product(("soft, all", "alone"), RATES, SEARCH):
        key = ("search", method, 1, rate, seed)
        ROWS.once(key, measure, *key)
    for (method, temperature), seed in itertools.product(RUNS, SEEDS):
        like = "alone" if method in FEW else "soft, all"
        rate = float(ROWS.best("rate", part="search", method=like))
        key = ("test", method, temperature, rate, seed)
        ROWS.once(key, measure, *key)


if __name__ == "__main__":
    main()
