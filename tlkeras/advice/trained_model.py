"""Get probabilities from a trained model, whatever its last layer outputs."""

import os
from contextlib import ExitStack
from typing import Any

import keras
import numpy as np

from tlkeras.advice.predictions import CLASS, LABELS, NUMBER
from tlkeras.blocks import internals
from tlkeras.runs.folder import usable
from tlkeras.runs.loading import SavedRun, load_run
from tlkeras.runs.run import Run


class TrainedModel:
    """Context manager around a model: changes to the model's layers are undone on exit.

    Args:
        run: the folder of a run, a Run, or a model that takes pixels 0..255.

    Attributes:
        model: a model that outputs probabilities.
        record: everything stored with a saved run, or {}.
        classes: the class names, or "0", "1", ... if no names are known.
        kind: "class", "labels" or "number".
        two: True if the single output is the probability of the second of two classes.
        size: (height, width) of the model's images, or None.
    """

    def __init__(self, run: Any):
        run = load_run(run) if isinstance(run, str | os.PathLike) else run
        model = run.model if isinstance(run, Run) else run
        self.record: dict[str, Any] = run.record if isinstance(run, SavedRun) else {}
        self.model: keras.Model = model
        output = self.record.get("output")
        with ExitStack() as stack:
            stack.enter_context(internals.Traces(internals.functional(model)))
            if output is None:
                build, output = usable(model)
                self.model = build()
            self._exit = stack.pop_all()
        width, names = self.model.output_shape[-1], self.record.get("classes")
        self.two = output == "sigmoid" and width == 1 and (names is None or len(names) == 2)
        self.classes: tuple[str, ...] = tuple(names or map(str, range(2 if self.two else width)))
        kinds = {"softmax": CLASS, "sigmoid": CLASS if self.two else LABELS}
        self.kind = kinds.get(output, NUMBER)
        size = self.record.get("image_size") or self.model.input_shape[1:3]
        self.size = (size[0], size[1]) if len(size) == 2 and all(size) else None

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: Any) -> None:
        self._exit.close()

    def probabilities(self, x: Any) -> np.ndarray:
        """Return the outputs for a batch, float32 (examples, classes)."""
        given = np.asarray(self.model.predict_on_batch(x), "float32")
        given = given.reshape(len(given), -1)
        return np.concatenate([1 - given, given], axis=1) if self.two else given
