"""Train the rest of a model on cached outputs of its frozen part, as `fit` would train it.

The batches, their order, the callbacks and the history are those of `model.fit`. A small head on
cached features takes microseconds per step, while `fit` adds half a millisecond. So on TensorFlow a
whole run of batches is trained on in one call, by a loop inside the graph.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from tlkeras.blocks import internals
from tlkeras.features.exactness import NotExact
from tlkeras.features.store import Features
from tlkeras.inputs import reading
from tlkeras.inputs.order import Ordered, ordered

HOOKS = ("on_batch_begin", "on_batch_end") + tuple(
    f"on_{kind}_batch_{end}" for kind in ("train", "test") for end in ("begin", "end")
)


class Source(keras.utils.PyDataset):
    """Data as batches of cached outputs, labels and weights.

    Args:
        data: arrays (x, y) or (x, y, sample_weight), or data in batches that say how many these
            are.
        features: where the outputs are stored.
        order: the data as `fit` would get them (`inputs.order.ordered`). None: the data in their
            own order, for validation.
        batch_size: for arrays.
        augment, views: as in a Stage; each epoch uses one view of each example.
        mark: identifies `augment` (`FeatureCache.mark`).
        class_weight: as for `fit`.
        seed: numbers that fix which view is used.
        strict: raise an error instead of a warning for data that change from epoch to epoch.
    """

    def __init__(
        self,
        data: Any,
        features: Features,
        batch_size: int,
        order: Any = None,
        augment: Callable | None = None,
        views: int | None = None,
        mark: bytes = b"",
        class_weight: dict[int, float] | None = None,
        seed: Sequence[int] = (0,),
        strict: bool = False,
    ):
        super().__init__()
        self.data, self.features, self.order = data, features, order
        if augment is not None and order is not None:  # views are drawn here
            self.order = ordered(data, batch_size, seed, None)
        self.batch_size, self.augment, self.views = batch_size, augment, views or 1
        self.class_weight, self.seed, self.strict = class_weight, seed, strict
        self.mark, self.epoch, self.changes = mark, 0, ""
        self._read, self._new = list[tuple](), 0
        self._arrays = isinstance(data, tuple | list)
        if self._arrays:
            self.order = self.order or Ordered(data, batch_size)
            self._rows = np.empty(0, "int64")

    def __len__(self) -> int:
        return len(self.data if self.order is None else self.order)

    def __getitem__(self, number: int) -> tuple:
        self.begin(self.epoch)
        rows, *rest = self._read[number]
        return (self.features.read(rows), *rest)

    def begin(self, epoch: int) -> None:
        """Read the batches of an epoch, and compute the outputs that are missing."""
        if self._read and epoch == self.epoch:
            return
        if self.changes:
            self.features = self.features.for_one_epoch()
        known, first, self.epoch = self.features.computed, not self._read, epoch
        if hasattr(self.order, "begin"):
            self.order.begin(epoch)
        if self._arrays and first:
            self._rows = self._find(self.order.arrays[0])
        self._read = list(self._batches())
        if not (first or self.changes):
            self._look_for_changes(self.features.computed - known)

    def _look_for_changes(self, new: int) -> None:
        """Detect data that change in every epoch: storing their outputs saves nothing.

        Args:
            new: the number of examples in this epoch that no earlier epoch had.
        """
        self._new += new
        if self._new <= sum(len(rows) for rows, *_ in self._read) / 2:
            return
        self.changes = (
            f"{new} examples of epoch {self.epoch + 1} were not in the epoch before, so nothing is "
            "saved. Move augmentation from the data to Stage(augment=..., views=...)"
        )
        if self.strict:
            raise NotExact(f"cache=True, but {self.changes}.")
        warnings.warn(self.changes, RuntimeWarning, stacklevel=3)

    def _batches(self) -> Iterator[tuple]:
        rng = np.random.default_rng([*self.seed, self.epoch, 1])
        if self._arrays:
            rows = self._rows + rng.integers(self.views, size=len(self._rows))
            labels = self.order.arrays[1:]
            for start in range(0, len(rows), self.batch_size):
                part = self.order.order[start : start + self.batch_size]
                rest = keras.tree.map_structure(lambda a, part=part: a[part], labels)
                yield self._weighted(rows[part], *rest)
        else:
            data = self.data if self.order is None else self.order
            if isinstance(data, keras.utils.PyDataset):
                if self.order is None or not self._read:
                    data.on_epoch_end()  # `fit` does so before it validates, and at its start
                data.on_epoch_begin()
            for x, *rest in reading.opened(data):
                rows = self._find(x)
                yield self._weighted(rows + rng.integers(self.views, size=len(rows)), *rest)
            if isinstance(data, keras.utils.PyDataset):
                data.on_epoch_end()
            reading.reopen(data, 1)  # as `fit` does at the end of an epoch

    def _find(self, x: Any) -> np.ndarray:
        return self.features.find(x, self.augment, self.views, self.mark)

    def _weighted(self, rows: np.ndarray, *rest: Any) -> tuple:
        if self.class_weight is None or len(rest) != 1:
            return (rows, *rest)
        return (rows, *rest, reading.class_weights(rest[0], self.class_weight))

    def runs(self) -> Iterator[tuple]:
        """Yield the batches joined to runs: (batch size, examples, (outputs, labels, weights)).

        All batches of a run have that size, except that the last one can be smaller. If an epoch
        needs several runs, they are padded to one shape, because a new shape would be retraced.
        """
        self.begin(self.epoch)
        most = max(1, self.features.run // max(1, self.features.row_bytes))
        several = sum(len(rows) for rows, *_ in self._read) > most
        run: list[tuple] = []
        for batch in self._read:
            size = len(run[0][0]) if run else 0
            full = run and (len(run[-1][0]) < size or len(batch[0]) > size)
            if full or (run and (len(run) + 1) * size > most):
                yield self._joined(run, most if several else 0)
                run = []
            run.append(batch)
        if run:
            yield self._joined(run, most if several else 0)

    def _joined(self, run: list[tuple], most: int) -> tuple:
        size = len(run[0][0])
        parts = keras.tree.map_structure(lambda *parts: np.concatenate(parts), *run)
        count = len(parts[0])
        filled = np.arange(max(count, most // size * size))
        filled[count:] = 0
        rows, *rest = keras.tree.map_structure(lambda part: part[filled], parts)
        return np.int32(size), np.int32(count), (self.features.read(rows), *rest)


class Above(keras.Model):
    """The model after the cut. With `looping`, one call trains or tests on a run of batches."""

    looping = False

    def train_step(self, *given: Any) -> Any:
        return self._over(super().train_step, *given)

    def test_step(self, *given: Any) -> Any:
        return self._over(super().test_step, *given)

    def _over(self, step: Callable, *given: Any) -> Any:
        if not self.looping:
            return step(*given)  # on JAX: the state and the data
        ((size, count, data),) = given

        def one(number: Any, done: Any) -> Any:
            start = number * size
            end = keras.ops.minimum(start + size, count)
            step(keras.tree.map_structure(lambda array: array[start:end], data))
            return done

        keras.ops.fori_loop(0, (count + size - 1) // size, one, 0)
        return self.get_metrics_result()


def sees_batches(callback: keras.callbacks.Callback) -> bool:
    """True if a callback does something at each batch, and so has to be called there."""
    return not all(internals.is_as_keras_has_it(getattr(callback, hook)) for hook in HOOKS)


def fit(
    model: keras.Model,
    above: Above,
    source: Source,
    validation: Source | None,
    objective: dict[str, Any],
    epochs: int,
    initial_epoch: int,
    callbacks: Sequence[keras.callbacks.Callback],
    each_batch: bool,
) -> None:
    """Train the part of a compiled `model` that is above the cut.

    Args:
        model: the whole model, which the callbacks see and whose optimizer is used.
        above: the part after the cut.
        source, validation: the data for training and validation.
        objective: loss and metrics, as for `compile`.
        epochs, initial_epoch, callbacks: as for `fit`. One of the callbacks must call
            `source.begin` with the number of each epoch.
        each_batch: whether to call the callbacks at every batch, which is slower.
    """
    _build_metrics(model, above, source)
    mirror = _Mirror(above, validation)
    listed = keras.callbacks.CallbackList(
        [*callbacks, mirror], add_history=True, model=model, epochs=epochs, steps=len(source),
        verbose=0,
    )  # fmt: skip
    initial_epoch = getattr(model, "_initial_epoch", 0) or initial_epoch
    objective = {"optimizer": model.optimizer, **objective}
    above.looping = keras.backend.backend() == "tensorflow" and not each_batch
    if above.looping:
        # no XLA: it is ten times slower here, and cannot slice at computed positions
        above.compile(**objective, jit_compile=False)
        _loop(above, model, source, validation, range(initial_epoch, epochs), listed)
        return
    above.compile(**objective)
    above.history = model.history
    above.fit(
        source, validation_data=validation, epochs=epochs, initial_epoch=initial_epoch,
        callbacks=listed, shuffle=False, verbose=0,
    )  # fmt: skip


def _build_metrics(model: keras.Model, above: keras.Model, source: Source) -> None:
    """Build the metrics of `model` as `fit` does: EarlyStopping asks them which way is better."""
    x, *rest = source[0]
    given = above.compute_output_spec(keras.KerasTensor(x.shape, x.dtype))
    prediction = keras.tree.map_structure(lambda t: keras.ops.zeros(t.shape, t.dtype), given)
    model.compute_metrics(None, rest[0] if rest else None, prediction, *rest[1:2])
    model.reset_metrics()


class _Mirror(keras.callbacks.Callback):
    """Pass `stop_training` on to the model that is trained, and the epoch to validation data."""

    async_safe = True

    def __init__(self, above: keras.Model, validation: Source | None):
        super().__init__()
        self.above, self.validation, self.epoch = above, validation, 0

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self.epoch = epoch

    def on_test_begin(self, logs: dict | None = None) -> None:
        if self.validation is not None:
            self.validation.begin(self.epoch)

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        self.above.stop_training = self.model.stop_training

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self.above.stop_training = self.model.stop_training


def _loop(
    above: Above,
    model: keras.Model,
    source: Source,
    validation: Source | None,
    epochs: range,
    callbacks: keras.callbacks.CallbackList,
) -> None:
    """Do what `keras.Model.fit` does, with one call per run of batches."""
    above._symbolic_build(data_batch=source[0])
    above.make_train_function()
    above.make_test_function()
    model.stop_training = False
    callbacks.on_train_begin()
    logs: dict[str, Any] = {}
    for epoch in epochs:
        callbacks.on_epoch_begin(epoch)
        above.reset_metrics()
        logs = _through(above, above.train_function, source)
        if validation is not None:
            above.reset_metrics()
            callbacks.on_test_begin()
            tested = _through(above, above.test_function, validation)
            callbacks.on_test_end(tested)
            logs |= {f"val_{name}": value for name, value in tested.items()}
        callbacks.on_epoch_end(epoch, logs)
        if model.stop_training:
            break
    model.optimizer.finalize_variable_values(above.trainable_weights)
    callbacks.on_train_end(logs)


def _through(above: Above, function: Callable, source: Source) -> dict[str, Any]:
    logs = {}
    for run in source.runs():
        logs = function(iter([run]))
    return dict(above._get_metrics_result_or_logs(logs))
