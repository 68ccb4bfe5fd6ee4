"""Transfer and fine-tuning, each on the task it is for and on the other's, at several rates.

    python tools/measure_polishing.py      # about 12 minutes on 2 cores; goes on where it stopped

Writes data/results/polishing.csv, which chapter 03 reads: a row a (task, use, rate, seed). One
reader of 108 letters, the preset `glyph_resnet` with a head, is put to two uses: on handwritten
digits, which none of its answers names (a new task), and on the same letters as they pass a camera
on a belt (the same task, narrower; synthetic). The seed draws the labelled images (ten a digit,
five a letter), the first weights of a new head, the smear's noise and the order of training.

Columns: accuracy on the task's test images; `letters`, the accuracy on the letters as they were,
as read by the old head on the backbone as it is afterwards; seconds of training. No rate is chosen
here: all are in the table.
The control `sharp letters` has the same images and labels without the smear.
"""

import csv
from pathlib import Path

import tlkeras as tlk

import keras  # isort: skip  (after tlkeras, which keeps TensorFlow quiet)
import numpy as np

STORE = Path(__file__).resolve().parents[1] / "data" / "results" / "polishing.csv"
HEADER = ("task", "use", "rate", "seed", "accuracy", "letters", "seconds")
SEEDS = range(3)
RATES = {"new head": (1e-4, 1e-3, 3e-3, 1e-2), "old head": (1e-5, 1e-4, 3e-4, 1e-3, 3e-3)}
EPOCHS = {"belt": 6, "digits": 12}
FROM_SCRATCH = {"belt": 60, "digits": 36}  # epochs
LABELS = {"belt": 5, "digits": 10}
HEAD_LR, SMALL_LR, SCRATCH_LR = 1e-2, 3e-4, 1e-3


def on_the_belt(images: np.ndarray, seed: int, smear: int = 9) -> np.ndarray:
    """The images as a camera takes them while they pass: smeared sideways, and noisy."""
    side = smear // 2
    wide = np.pad(images, ((0, 0), (0, 0), (side, side), (0, 0)), mode="edge")
    moved = np.mean([wide[:, :, i : i + images.shape[2]] for i in range(smear)], axis=0)
    noise = np.random.default_rng(seed).normal(0, 10, (*moved.shape[:3], 1))
    return np.clip(moved + noise, 0, 255).astype("float32")


def drawn(labels: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(labels == c) for c in range(labels.max() + 1)]
    return np.concatenate([rng.choice(m, per_class, replace=False) for m in members])


def letters() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Latin, Greek and Cyrillic ones of `glyphs`, 108 classes."""
    task = tlk.load_task("glyphs")
    chosen = [i for i, c in enumerate(task.classes) if ord(c) < 0x80 or 0x370 <= ord(c) < 0x460]
    parts = {}
    for split in ("train", "validation", "test"):
        images, labels = task.arrays(split)
        kept = np.isin(labels, chosen)
        parts[split] = images[kept], np.searchsorted(chosen, labels[kept]).astype("int32")
    return parts


class Reader:
    """A backbone with a head for the letters, trained once; what is measured starts from it."""

    def __init__(self, data: dict):
        self.test, self.classes = data["test"], data["test"][1].max() + 1
        self.model = self.new_model(self.classes, seed=0)
        rates = (("fast", HEAD_LR, 6), ("slow", HEAD_LR / 10, 4))  # until there is little to gain
        plan = [tlk.Stage(name, tlk.policies.head_only(), *rest) for name, *rest in rates]
        tlk.fit_stages(self.model, plan, data["train"], data["validation"], seed=0, verbose=0)
        self.start = self.model.get_weights()

    def new_model(self, classes: int, seed: int, weights: str | None = "pretrained"):
        keras.utils.set_random_seed(seed)
        return tlk.add_head(tlk.load_backbone("glyph_resnet", weights=weights), int(classes))

    def with_old_head(self) -> keras.Model:
        self.model.set_weights(self.start)
        return self.model

    def letters(self, model: keras.Model) -> float:
        """Accuracy on the letters of the model's backbone, with the old head if it has another."""
        if model is not self.model:
            self.model.set_weights([*model.get_weights()[:-2], *self.start[-2:]])
        return accuracy(self.model, self.test)


def accuracy(model: keras.Model, data: tuple) -> float:
    guess = model.predict(data[0], batch_size=250, verbose=0).argmax(axis=1)
    return float(np.mean(guess == data[1]))


def measure(reader, task: str, train: tuple, test: tuple, seed: int, known: set, sharp=None):
    epochs, classes = EPOCHS[task], train[1].max() + 1

    def row(use: str, rate: float, build, *plans, train=train) -> None:
        if (task, use, f"{rate:g}", str(seed)) in known:
            return
        model, seconds = build(), 0.0
        for plan in plans:
            seconds += tlk.fit_stages(model, plan, train, seed=seed, verbose=0).seconds
        scores = accuracy(model, test), reader.letters(model)
        result = (task, use, f"{rate:g}", seed, *(f"{x:.4f}" for x in scores), f"{seconds:.1f}")
        with STORE.open("a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(result)
        print(*result, flush=True)

    def new():
        return reader.new_model(classes, seed)

    def blank():
        return reader.new_model(classes, seed, weights=None)

    def all_blocks(rate: float) -> tlk.Plan:
        return tlk.recipes.full(epochs, rate)

    old = reader.with_old_head
    row("as it is", 0, old)
    for rate in RATES["new head"]:
        row("new head", rate, new, tlk.recipes.head_only(epochs, rate))
    for rate in RATES["old head"]:
        row("old head, all blocks", rate, old, all_blocks(rate))
    head = tlk.recipes.head_only(epochs, HEAD_LR)
    row("new head, then all blocks", SMALL_LR, new, head, all_blocks(SMALL_LR))
    if sharp:
        row("old head alone", 1e-3, old, tlk.recipes.head_only(epochs, 1e-3))
        row("old head, all blocks, sharp letters", SMALL_LR, old, all_blocks(SMALL_LR), train=sharp)
    scratch = tlk.recipes.full(FROM_SCRATCH[task], SCRATCH_LR, batchnorm="train")
    row("from scratch", SCRATCH_LR, blank, scratch)


def main() -> None:
    tlk.accelerate()
    if not STORE.exists():
        STORE.write_text(",".join(HEADER) + "\n")
    with STORE.open() as file:
        known = {(r["task"], r["use"], r["rate"], r["seed"]) for r in csv.DictReader(file)}
    data = letters()
    reader = Reader(data)
    digits = tlk.load_task("digits")
    for seed in SEEDS:
        for task, source in (("digits", digits.arrays("train")), ("belt", data["train"])):
            chosen = drawn(source[1], LABELS[task], seed)
            images, labels = source[0][chosen], source[1][chosen]
            if task == "digits":
                measure(reader, task, (images, labels), digits.arrays("test"), seed, known)
            else:
                train = on_the_belt(images, seed), labels
                test = on_the_belt(data["test"][0], seed + 100), data["test"][1]
                measure(reader, task, train, test, seed, known, sharp=(images, labels))


if __name__ == "__main__":
    main()
