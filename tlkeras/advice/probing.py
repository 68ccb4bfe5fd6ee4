"""Probe before you commit: the accuracy of a linear classifier on the outputs of every block."""

import functools
import math
import timeit
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from matplotlib.figure import Figure

from tlkeras.advice import linear
from tlkeras.blocks import internals
from tlkeras.blocks.find import Block, find_blocks
from tlkeras.blocks.taps import tapped
from tlkeras.display import plots
from tlkeras.features.store import CHUNK
from tlkeras.inputs import intake, order, reading
from tlkeras.utils.tables import Table, html_table, text_table

SURE = 1.96  # standard errors on either side of a 95 % interval
STEP = 3  # the cost of a training step, in forward passes through the trained blocks


@dataclass(frozen=True)
class Probe:
    """Accuracy of a linear classifier on the outputs of each block, bottom to top.

    Attributes:
        blocks: names of the blocks.
        accuracies: the accuracy for each block on the validation data, in [0, 1].
        correct: (blocks, examples), True where a classifier is right about a validation example.
        logme: for each block, the LogME score: how probable the training labels are under a linear
            model, averaged over its weights. Comparable between blocks and networks on the same
            data; higher is better.
        strengths: C of each classifier.
        examples: the number of training and of validation examples.
        seconds: the time per example through all blocks, and through the last block alone,
            measured on this machine.
        advice: what the accuracies suggest, as text.
    """

    blocks: tuple[str, ...]
    correct: np.ndarray = field(repr=False)
    logme: tuple[float, ...]
    strengths: tuple[float, ...] = field(default=(), repr=False)
    examples: tuple[int, int] = field(default=(0, 0), repr=False)
    seconds: tuple[float, float] = field(default=(math.nan, math.nan), repr=False)
    _header = ("block", "accuracy of a linear probe", "95 % interval", "LogME")

    @property
    def accuracies(self) -> tuple[float, ...]:
        return tuple(self.correct.mean(axis=1).tolist())

    @property
    def last_serves(self) -> bool:
        """True if no block is significantly better than the last one.

        The classifiers are compared on the same examples, so only the examples on which two of
        them differ count (McNemar 1947).
        """
        gained = self.correct.astype(float) - self.correct[-1]
        error = gained.std(axis=1) / np.sqrt(gained.shape[1])
        return bool((gained.mean(axis=1) <= SURE * error).all())

    @property
    def advice(self) -> str:
        return _advice(self)

    @property
    def choices(self) -> Table:
        """A table of options, with the expected accuracy (where the probe knows it) and the time.

        Seconds are those of `epoch_seconds`; the outputs of frozen blocks are computed once.

        >>> backbone = tlk.load_backbone("glyph_resnet_small", image_size=32)
        >>> x, y = np.random.uniform(0, 255, (16, 32, 32, 3)), np.arange(16) % 2
        >>> [row[0] for row in tlk.probe(backbone, (x, y), (x, y)).choices.cells][-2:]
        ['train stack1, too', 'train all blocks']
        """
        once, first = "once, then next to nothing", _time(self.seconds[0] * sum(self.examples))
        names, found = self.blocks, self.accuracies
        best = int(np.argmax(found))
        rows = [("the head alone", f"{found[-1]:.3f}", f"{first} {once}")]
        if best < len(names) - 1:
            rows.append((f"cut after {names[best]}, a head on it", f"{found[best]:.3f}",
                         f"under {first} {once}"))  # fmt: skip
        rows.append((f"train {names[-1]}, too", "not known", _time(self.epoch_seconds(last=True))))
        rows.append(("train all blocks", "not known", _time(self.epoch_seconds())))
        return Table(rows, ("choice", "accuracy to expect", "seconds per epoch, here"))

    def epoch_seconds(self, last: bool = False) -> float:
        """Estimate the seconds per epoch, on this machine, if all blocks or only the last learn.

        A training step is assumed to cost three forward passes through the trained blocks (the
        forward pass, and the gradients of outputs and of weights), a validation step one.
        """
        trained, validated = self.examples
        return self.seconds[last] * (STEP * trained + validated)

    def plot(self) -> Figure:
        """Plot the accuracy against depth; returns a Figure.

        >>> backbone = tlk.load_backbone("glyph_resnet_small", image_size=32)
        >>> x, y = np.random.uniform(0, 255, (16, 32, 32, 3)), np.arange(16) % 2
        >>> figure = tlk.probe(backbone, (x, y), (x, y)).plot()
        >>> figure.axes[0].get_ylabel()
        'accuracy of a linear probe'
        """
        with plots.canvas(size=(5, 3)) as (figure, axis):
            bars = np.transpose(self._intervals())
            middle = np.array(self.accuracies)
            axis.errorbar(self.blocks, middle, np.abs(bars - middle), marker="o", capsize=3)
            axis.set(xlabel="outputs of block", ylabel="accuracy of a linear probe")
        return figure

    def _intervals(self) -> list[tuple[float, float]]:
        """Return the 95 % confidence interval of each accuracy (Wilson 1927)."""
        count, found = self.correct.shape[1], np.array(self.accuracies)
        spread = SURE**2 / count
        middle = (found + spread / 2) / (1 + spread)
        half = np.sqrt(spread * (found * (1 - found) + spread / 4)) / (1 + spread)
        return list(zip(middle - half, middle + half, strict=True))

    def _rows(self) -> list[tuple[str, ...]]:
        rows = zip(self.blocks, self.accuracies, self._intervals(), self.logme, strict=True)
        return [
            (name, f"{found:.3f}", f"{low:.2f} to {high:.2f}", f"{score:.2f}")
            for name, found, (low, high), score in rows
        ]

    def __repr__(self) -> str:
        shown = f"{text_table(self._rows(), self._header)}\n{self.advice}"
        return shown if math.isnan(self.seconds[0]) else f"{shown}\n\n{self.choices!r}"

    def _repr_html_(self) -> str:
        shown = f"{html_table(self._rows(), self._header)}<p>{self.advice}</p>"
        return shown if math.isnan(self.seconds[0]) else shown + self.choices._repr_html_()


def probe(
    model: keras.Model, data: Any, validation_data: Any, *, strength: float | None = None
) -> Probe:
    """Fit a linear classifier on the pooled outputs of every block, in a single pass over the data.

    Args:
        model: built, with a graph; a head is ignored. The model is not changed. If a block has
            several output tensors (two inputs, two towers), their means are concatenated.
        data, validation_data: as for `fit_stages`; one class label per example: numbers, names or
            one-hot rows.
        strength: C of scikit-learn's LogisticRegression, on outputs scaled to unit variance;
            smaller values regularise more. None: the best of 0.01, 0.1 and 1 in cross-validation
            on the training data (on at most 500 examples); 1 if a class has only one example.

    Raises:
        ValueError: for fewer than two classes, a model without a graph, or data that do not fit
            the model or are infinite.

    Source: Alain & Bengio 2016, "Understanding intermediate layers using linear classifier
    probes"; course section 1.7, rule 3: probe before you commit.

    >>> backbone = tlk.load_backbone("glyph_resnet_small", image_size=32)
    >>> y = np.arange(48) % 3  # brighter images in the higher classes
    >>> x = 80 * y[:, None, None, None] + np.random.uniform(0, 80, (48, 32, 32, 3))
    >>> found = tlk.probe(backbone, (x[:24], y[:24]), (x[24:], y[24:]))
    >>> found.blocks
    ('stem', 'stack0', 'stack1')
    >>> max(found.accuracies)
    1.0
    """
    given = [taken(model, part) for part in (data, validation_data)]
    taps = taps_of(model)
    (outputs, labels), (tested, truth) = (outputs_of(taps, part) for part in given)
    check_classes(labels)
    correct, evidence, strengths = [], [], []
    for seen, new in zip(outputs, tested, strict=True):
        evidence.append(linear.logme(seen, labels))
        strengths.append(strength or linear.strength(seen, labels))
        fitted = linear.classifier(strengths[-1]).fit(seen, labels)
        correct.append(fitted.predict(new) == truth)
    examples, seconds = (len(labels), len(truth)), taps.seconds(next(chunks(given[0]))[0])
    names = tuple(block.name for block in taps.blocks)
    return Probe(names, np.array(correct), tuple(evidence), tuple(strengths), examples, seconds)


def taken(model: keras.Model, data: Any) -> Any:
    """Return the data in the form that the model's blocks take."""
    data = intake.taken(model, data, "data to probe", names=True)
    prepared = intake.preprocesses(model)
    return order.prepared(data, CHUNK, model.preprocess_samples) if prepared else data


class Taps:
    """Computes the pooled outputs of every block, (examples, channels) each."""

    def __init__(self, model: keras.Model, blocks: Sequence[Block]):
        self.blocks = blocks
        self.model, found = tapped(model, [tensor for b in blocks for tensor in b.outputs])
        self.places = [
            [i for i, tensor in enumerate(found) if any(tensor is one for one in block.outputs)]
            for block in blocks
        ]

    def __call__(self, x: Any) -> list[np.ndarray]:
        means = list(map(np.asarray, keras.tree.flatten(self.model.predict_on_batch(x))))
        return [np.concatenate([means[i] for i in places], axis=1) for places in self.places]

    def seconds(self, x: Any) -> tuple[float, float]:
        """Return the seconds per example through all blocks, and through the last block alone.

        Measured on one batch, as the fastest of three runs after a first run that is traced.
        """
        below = {i for places in self.places[:-1] for i in places}
        parts = [self.model]
        if below:
            parts.append(keras.Model(self.model.input, [self.model.outputs[i] for i in below]))
        found = [0.0, 0.0]
        for number, part in enumerate(parts):
            part.predict_on_batch(x)
            times = timeit.repeat(functools.partial(part.predict_on_batch, x), number=1, repeat=3)
            found[number] = min(times)
        whole, rest = (second / len(keras.tree.flatten(x)[0]) for second in found)
        return whole, max(whole - rest, 0.0)


def taps_of(model: keras.Model) -> Taps:
    """Return Taps on all blocks below the head.

    Raises ValueError for a model without a graph, or without such blocks.
    """
    blocks = [b for b in find_blocks(model) if b.role != "head" and b.outputs]
    if not blocks:
        raise ValueError(
            f"Expected a model whose blocks can be looked into; found {type(model).__name__} "
            f"{model.name!r}, which has no backbone in a graph. Put it together as a functional "
            "model: keras.Model(inputs, outputs)."
        )
    with internals.Traces(internals.functional(model)):
        return Taps(model, blocks)


def outputs_of(taps: Taps, data: Any) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the pooled outputs of every block, (examples, channels) each, and the labels.

    Raises ValueError for labels that are not one class per example.
    """
    found, labels = [], []
    for x, y, *_ in chunks(data):
        found.append(taps(x))
        labels.append(class_numbers(y))
    return [np.concatenate(kept) for kept in zip(*found, strict=True)], np.concatenate(labels)


def check_classes(labels: np.ndarray) -> None:
    if len(np.unique(labels)) < 2:
        raise ValueError(f"Expected at least two classes; found {np.unique(labels).tolist()}.")


def _time(seconds: float) -> str:
    return f"{seconds:.2g}" if seconds < 10 else f"{seconds:.0f}"


def class_numbers(labels: Any) -> np.ndarray:
    """Return one class per example: its number or name; for one-hot rows, the position of the 1."""
    if keras.tree.is_nested(labels):
        raise ValueError(
            "Expected one class for each example; found labels of several outputs. Probe for one "
            "of them at a time."
        )
    labels = np.asarray(labels)
    if labels.ndim == 2 and labels.shape[1] > 1:
        if np.isin(labels, (0, 1)).all() and (labels.sum(axis=1) == 1).all():
            return labels.argmax(axis=1)
    elif labels.size == len(labels):
        return labels.reshape(-1)
    raise ValueError(
        f"Expected one class for each example, as a number or a one-hot row; found labels of shape "
        f"{labels.shape}. Probe for one label at a time: y[:, 0]."
    )


def chunks(data: Any) -> Iterator[tuple]:
    if not isinstance(data, tuple | list):
        yield from reading.opened(data)
        return
    given = intake.as_arrays(reading.without_none(tuple(data)))
    arrays = keras.tree.map_structure(reading.as_numpy, given)
    for start in range(0, len(arrays[1]), CHUNK):
        yield keras.tree.map_structure(
            lambda array, start=start: array[start : start + CHUNK], arrays
        )


def _advice(found: Probe) -> str:
    names, accuracies = found.blocks, found.accuracies
    best = int(np.argmax(accuracies))
    if found.last_serves:
        lead = accuracies[best] - accuracies[-1]
        tie = f" ({names[best]} leads by {lead:.3f}, which may be chance)" if lead else ""
        return (
            f"The last block, {names[-1]}, serves as well as any{tie}: train the head alone "
            "first, and unfreeze only if its accuracy is not enough."
        )
    return (
        f"{names[best]} serves better than the last block ({accuracies[best]:.3f} against "
        f"{accuracies[-1]:.3f}): what lies above it is made for the source task. Cut there, or "
        f"unfreeze the blocks above it ({', '.join(names[best + 1 :])}), and measure which."
    )
