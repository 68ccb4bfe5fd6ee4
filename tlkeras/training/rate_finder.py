"""`find_learning_rate`: suggest a learning rate to start with, from a short sweep."""

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from matplotlib.figure import Figure

from tlkeras.blocks import internals
from tlkeras.display import plots
from tlkeras.freezing.closed import forget_open
from tlkeras.freezing.flags import freeze
from tlkeras.inputs import checks, intake, order, reading
from tlkeras.inputs.objective import check_loss, default_objective
from tlkeras.optimizers import like
from tlkeras.utils import processes
from tlkeras.utils.tables import html_table, text_table

KEEP = 0.8  # weight of the old running average of the loss at each new batch
DIVERGED = 4  # diverged: a running average above this times its lowest, and above the first loss


@dataclass(frozen=True, repr=False)
class LearningRates:
    """The result of a sweep over learning rates.

    Attributes:
        rates: learning rates, growing by the same factor from batch to batch; (n,).
        losses: the loss of every batch, smoothed and clipped at twice the first loss; (n,).
        suggestion: a learning rate to start with, or None if the loss never fell.
        stopped: why the sweep ended before its highest rate, or "".
    """

    rates: np.ndarray
    losses: np.ndarray
    suggestion: float | None
    stopped: str = ""

    def plot(self) -> Figure:
        """Plot the loss against the learning rate, with the suggestion marked, as a Figure.

        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> x, y = np.random.normal(size=(64, 4)), np.arange(64) % 2
        >>> figure = tlk.find_learning_rate(model, (x, y), steps=20).plot()
        >>> figure.axes[0].get_xlabel()
        'learning rate'
        """
        with plots.canvas(size=(6, 3.2)) as (figure, axis):
            axis.plot(self.rates, self.losses)
            axis.set(xscale="log", xlabel="learning rate", ylabel="loss (smoothed)")
            shown = self.losses[np.isfinite(self.losses)]
            top = max(shown[0], np.median(shown)) if len(shown) else 1.0
            low = shown.min() if len(shown) else 0.0
            axis.set_ylim(low - 0.1 * (top - low) - 1e-9, top + 0.5 * (top - low) + 1e-9)
            if self.suggestion is not None:
                axis.axvline(self.suggestion, color=plots.DARK, linestyle="--", linewidth=1)
                axis.text(self.suggestion, 1.01, f"{self.suggestion:.1e}", ha="center",
                          va="bottom", transform=axis.get_xaxis_transform())  # fmt: skip
        return figure

    def _rows(self) -> list[tuple[str, str]]:
        found = self.suggestion
        rows = [
            ("suggestion", "none: the loss never fell" if found is None else f"{found:.1e}"),
            ("tried", f"{self.rates[0]:.1e} to {self.rates[-1]:.1e}, {len(self.rates)} batches"),
            ("lowest loss", f"{np.nanmin(self.losses):.3f} at {self._lowest():.1e}"),
        ]
        return [*rows, *([("stopped", self.stopped)] if self.stopped else [])]

    def _lowest(self) -> float:
        return float(self.rates[np.nanargmin(self.losses)])

    def __repr__(self) -> str:
        return text_table(self._rows(), ("learning rate", ""))

    def _repr_html_(self) -> str:
        return html_table(self._rows(), ("learning rate", ""))


def find_learning_rate(
    model: keras.Model,
    data: Any,
    *,
    policy: Callable | None = None,
    optimizer: keras.optimizers.Optimizer | str | None = None,
    loss: Any = None,
    lowest: float = 1e-7,
    highest: float = 1.0,
    steps: int = 100,
    batch_size: int = 32,
    seed: int = 0,
) -> LearningRates:
    """Train for a few batches at ever higher learning rates, and suggest one to start with.

    The suggestion is the rate at which the smoothed loss falls fastest on a logarithmic scale of
    rates, before its lowest point: there each step still helps most. The loss is smoothed forwards
    and backwards, so that it does not lag behind, and its slope is measured over a tenth of the
    batches. It counts as falling if it falls by more than twice the noise between batches.

    Afterwards weights, BatchNorm statistics, the model's random states, trainable flags and
    everything the model was compiled with are as before, even after an error.

    Args:
        model: built; compiled or not.
        data: as for `fit_stages`. If it has fewer batches than `steps`, it is read again.
        policy: which blocks learn during the sweep, as for `freeze`. None: as the model is.
        optimizer: a name or an object whose class and settings are used. None: those of the
            compiled model's optimizer, or AdamW.
        loss: as for `compile`. None: the loss of the compiled model, or the cross-entropy that fits
            the labels.
        lowest, highest: learning rates of the first and the last batch.
        steps: the number of batches. The sweep ends earlier if the loss diverges: its running
            average rises above 4 times its lowest and above the first loss, or becomes NaN.
        batch_size: for arrays.
        seed: for the order of arrays.

    Raises:
        ValueError: rates or steps are out of range, the data do not fit the model, the data are a
            generator (the sweep would use it up), or several processes train together.

    Source: Smith 2017, "Cyclical Learning Rates for Training Neural Networks", section 3.3 (the
    range test); the steepest slope as in fastai's `lr_find` (Howard & Gugger 2020, "fastai: A
    Layered API for Deep Learning").

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> y = np.arange(48) % 3
    >>> x = 2 * y[:, None] + np.random.normal(size=(48, 4))
    >>> found = tlk.find_learning_rate(model, (x, y), steps=60)
    >>> 0.001 < found.suggestion < 1
    True
    """
    if not 0 < lowest < highest < math.inf or steps < 10:
        raise ValueError(
            "Expected 0 < lowest < highest and 10 steps or more; found "
            f"lowest={lowest}, highest={highest}, steps={steps}."
        )
    if hasattr(data, "__next__"):
        raise ValueError(
            "Expected data that can be begun again; found a generator, which the sweep would use "
            "up. Pass arrays, a tf.data.Dataset or a PyDataset."
        )
    if processes.count() > 1:
        raise ValueError(
            f"Expected a process that is alone; found {processes.count()} joined by accelerate(). "
            "Look for the learning rate in a script of its own, in one process."
        )
    data = intake.taken(model, data, steps=steps)
    compiled = internals.compiled_with(model)
    if loss is None:
        loss = compiled["loss"] or default_objective(model, data)[0]
    check_loss(model, loss)
    checks.check(model, data, loss)
    if isinstance(optimizer, str):
        optimizer = keras.optimizers.get(optimizer)
    if optimizer is None:
        optimizer = (model.optimizer if model.compiled else None) or keras.optimizers.AdamW()
    rates = np.geomspace(lowest, highest, steps)
    with as_found(model):
        if policy is not None:
            freeze(model, policy)
        objective = {"loss": loss, "loss_weights": compiled["loss_weights"]}
        batches = _batches(data, batch_size, seed)
        if intake.preprocesses(model):
            prepare = model.preprocess_samples
            batches = (order.prepared_batch(prepare, batch) for batch in batches)
        losses = _sweep(
            model, batches, rates, optimizer=like(optimizer, lowest, model.variables), **objective
        )
    rates = rates[: len(losses)]
    stopped = f"the loss diverged at {rates[-1]:.1e}" if len(losses) < steps else ""
    smooth = _smooth(losses)
    return LearningRates(rates, smooth, _suggest(rates, losses, smooth), stopped)


def _sweep(
    model: keras.Model, batches: Iterator[tuple], rates: np.ndarray, **compile_options: Any
) -> np.ndarray:
    """Return the loss of every batch, up to the one at which it diverges."""
    probe = _Probe(model)
    probe.compile(**compile_options, jit_compile=model.jit_compile if model.compiled else "auto")
    losses: list[float] = []
    average = best = math.inf
    for rate, batch in zip(rates, batches, strict=False):
        probe.optimizer.learning_rate = float(rate)
        probe.reset_metrics()
        losses.append(float(np.ravel(probe.train_on_batch(*batch))[0]))
        average = losses[0] if len(losses) == 1 else KEEP * average + (1 - KEEP) * losses[-1]
        best = min(best, average)
        if not math.isfinite(average) or average > max(DIVERGED * best, losses[0]):
            break
    return np.array(losses)


class _Probe(keras.Model):
    """Wraps a model, so that it can be compiled and trained without compiling the model itself."""

    def __init__(self, model: keras.Model):
        super().__init__(name="probe", dtype=model.dtype_policy, autocast=False)
        self.probed = model
        if getattr(model, "output_names", None):
            self.output_names = model.output_names

    def build(self, input_shape: Any) -> None:
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return self.probed(inputs, training=training)


def _batches(data: Any, batch_size: int, seed: int) -> Iterator[tuple]:
    """Yield batches without end; arrays in a new order on each pass, and only full batches."""
    rng = np.random.default_rng(seed)
    if isinstance(data, tuple | list):
        arrays = keras.tree.map_structure(np.asarray, tuple(data))
        count = len(keras.tree.flatten(arrays)[0])
        size = min(batch_size, count)
        while True:
            order = rng.permutation(count)
            for start in range(0, count - size + 1, size):
                rows = order[start : start + size]
                yield keras.tree.map_structure(lambda array, rows=rows: array[rows], arrays)
    if isinstance(data, keras.utils.PyDataset) and intake.endless(data):
        yield from (reading.as_parts(data[number]) for number in itertools.count())
    while True:
        yield from reading.opened(data)


@contextmanager
def as_found(model: keras.Model) -> Iterator[None]:
    """Context manager: restore variables, trainable flags and the modes of layers on exit."""
    layers = internals.all_layers(model)
    variables = list({id(v): v for v in [*model.variables, *model.weights]}.values())
    values = [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]
    flags = [variable.trainable for variable in variables]
    opened = [internals.flag(layer) for layer in layers]
    calls = [vars(layer).get("call") for layer in layers]
    try:
        yield
    finally:
        for layer, flag in zip(layers, opened, strict=True):
            internals.set_flag(layer, flag)
        for variable, flag, value in zip(variables, flags, values, strict=True):
            variable.trainable = flag
            variable.assign(value)
        for layer, call in zip(layers, calls, strict=True):
            vars(layer).pop("call", None)
            if call is not None:
                layer.call = call
        forget_open(model)


def _smooth(losses: np.ndarray) -> np.ndarray:
    """Return the mean of the running averages from both ends.

    The loss is clipped at twice the first one, so that its divergence does not affect earlier
    batches. A loss that is not finite becomes NaN.
    """
    found = np.where(np.isfinite(losses), losses, np.nan)
    found = np.minimum(found, losses[0] + abs(losses[0]))
    finite = found[np.isfinite(found)]
    both = []
    for way in (slice(None), slice(None, None, -1)):
        average, out = None, []
        for value in finite[way]:
            average = value if average is None else KEEP * average + (1 - KEEP) * value
            out.append(average)
        both.append(np.array(out)[way])
    found[np.isfinite(found)] = (both[0] + both[1]) / 2
    return found


def _suggest(rates: np.ndarray, losses: np.ndarray, smooth: np.ndarray) -> float | None:
    finite = np.isfinite(smooth)
    rates, losses, smooth = rates[finite], losses[finite], smooth[finite]
    if len(smooth) < 5:
        return None
    lowest = int(np.argmin(smooth))
    if lowest < 2:
        return None
    noise = float(np.std(np.diff(losses[: lowest + 1]))) / math.sqrt(2)
    if smooth[0] - smooth[lowest] <= 2 * noise:
        return None
    reach = max(1, len(smooth) // 20)  # single batches are noisy: slopes over a tenth of them
    middle = np.arange(lowest + 1)
    left, right = np.maximum(middle - reach, 0), np.minimum(middle + reach, lowest)
    slopes = (smooth[right] - smooth[left]) / np.log(rates[right] / rates[left])
    return float(rates[int(np.argmin(slopes))])
