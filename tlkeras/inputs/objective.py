"""Choose a loss and metrics that fit the labels and the model's last activation, if they are clear.

Also check that a given loss fits that activation.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from tlkeras.blocks.activation import LOGITS, SIGMOID, SOFTMAX, endings, output_shapes
from tlkeras.inputs.reading import first_batches

SPARSE, ONE_HOT, SEVERAL, TWO = "class numbers", "one-hot rows", "rows of 0 and 1", "0 and 1"


class CrossEntropy(NamedTuple):
    """One of Keras's cross-entropies.

    Attributes:
        family: "sparse", "categorical" or "binary".
        from_logits: True if it takes scores, False if it takes probabilities.
        ignore: the label that it leaves out, or None.
        name: the name of its class in Keras.
    """

    family: str
    from_logits: bool
    ignore: int | None
    name: str


def cross_entropy(loss: Any) -> CrossEntropy | None:
    """Describe `loss` if it is a Keras cross-entropy (name, function or object); else None."""
    settings: dict[str, Any] = {}
    if isinstance(loss, keras.losses.Loss):
        settings, name = loss.get_config(), type(loss).__name__
        own = type(loss) is not getattr(keras.losses, name, None)
    else:
        name = loss if isinstance(loss, str) else getattr(loss, "__name__", "")
        own = not isinstance(loss, str) and loss is not getattr(keras.losses, name, None)
    short = name.lower().replace("_", "").replace("bce", "binarycrossentropy")
    found = re.fullmatch(r"(sparse|)(categorical|binary)(focal|)crossentropy", short)
    if own or not found:
        return None
    sparse, kind, focal = (word.capitalize() for word in found.groups())
    name = f"{sparse}{kind}{focal}Crossentropy"
    logits, ignore = bool(settings.get("from_logits")), settings.get("ignore_class")
    return CrossEntropy((sparse or kind).lower(), logits, ignore, name)


def check_loss(model: keras.Model, loss: Any) -> None:
    """Raise ValueError if a loss does not fit the model's last activation.

    For example, a loss for probabilities on a model that outputs scores. Only Keras's own
    cross-entropies are checked. Outputs whose last activation the graph does not show are checked
    only for their number.
    """
    outputs = list(zip(endings(model) or [], output_shapes(model) or [], strict=True))
    for position, one in by_output(model, loss).items():
        known = cross_entropy(one)
        if known is not None and position < len(outputs):
            _check_one(known, *outputs[position])


def _check_one(known: CrossEntropy, ending: str | None, shape: tuple[int | None, ...]) -> None:
    if known.family != "binary" and shape[-1] == 1:
        raise ValueError(
            f"Expected two outputs or more for {known.name}; found one, for which it is always 0. "
            f"Pass loss=keras.losses.BinaryCrossentropy(from_logits={ending == LOGITS}) for "
            "labels 0 and 1."
        )
    if ending is None or known.from_logits == (ending == LOGITS):
        return
    name = known.name if ending != SIGMOID else "BinaryCrossentropy"
    ends = "scores (no softmax, no sigmoid)" if ending == LOGITS else f"a {ending}"
    raise ValueError(
        f"Expected a loss for a model that ends in {ends}; found {known.name} with from_logits="
        f"{known.from_logits}. Pass loss=keras.losses.{name}(from_logits={ending == LOGITS})."
    )


def by_output(model: keras.Model, loss: Any) -> dict[int, Any]:
    """Return the loss of each output, by the number of the output."""
    if isinstance(loss, dict):
        names = list(getattr(model, "output_names", None) or [])
        return {names.index(name): one for name, one in loss.items() if name in names}
    return dict(enumerate(loss)) if isinstance(loss, list | tuple) else {0: loss}


def default_objective(model: keras.Model, data: Any) -> tuple[keras.losses.Loss, list[Any]]:
    """Return the cross-entropy that fits the labels and the last activation, and its metrics.

    Whole numbers for a model with several outputs are class numbers. Rows of 0 and 1 that all sum
    to 1 are classes, too; other rows of 0 and 1 are several labels per example. 0 and 1 for a model
    with one output are two classes.

    Raises:
        ValueError: the labels are anything else (measurements, boxes, probabilities), or the last
            activation does not fit or is not known; the message says what to pass.
    """
    labels = [batch[1] for batch in first_batches(data) if len(batch) > 1]
    shapes, found = output_shapes(model), endings(model)
    if shapes is None or found is None:
        raise ValueError(
            "A loss can be chosen only where the model's graph shows its last activation; found "
            f"{type(model).__name__}, whose call is its own. Pass loss=..., as for compile."
        )
    arrays = all(isinstance(part, np.ndarray) for part in labels)
    if not labels or not arrays or len(shapes) != 1 or not isinstance(shapes[0][-1], int):
        raise ValueError(
            "A loss can be chosen only for one output and one array of labels per batch; found "
            f"outputs {shapes}. Pass loss=..., or compile the model first."
        )
    kind, [ending] = _kind(labels, shapes[0]), found
    known = {SPARSE: (LOGITS, SOFTMAX), ONE_HOT: (LOGITS, SOFTMAX, SIGMOID)}
    fitting = known.get(kind, (LOGITS, SIGMOID))
    if ending not in fitting:
        what = "a layer whose activation is not known" if ending is None else f"a {ending}"
        raise ValueError(
            f"Expected {' or '.join(fitting)} as the model's last activation, as the labels are "
            f"{kind}; found {what}. Give the head such an activation, or pass loss=... ."
        )
    logits = ending == LOGITS
    if kind == SPARSE:
        return keras.losses.SparseCategoricalCrossentropy(from_logits=logits), ["accuracy"]
    if kind == ONE_HOT and ending != SIGMOID:
        return keras.losses.CategoricalCrossentropy(from_logits=logits), ["accuracy"]
    name = "accuracy" if kind == TWO else "binary_accuracy"
    return keras.losses.BinaryCrossentropy(from_logits=logits), [_binary_accuracy(name, logits)]


def _binary_accuracy(name: str, logits: bool) -> keras.metrics.Metric:
    return keras.metrics.BinaryAccuracy(name, threshold=0.0 if logits else 0.5)


def _kind(labels: Sequence[np.ndarray], output: tuple[int | None, ...]) -> str:
    """Return which kind of labels these are: SPARSE, ONE_HOT, SEVERAL or TWO."""
    shape, classes = labels[0].shape, output[-1]
    single = len(shape) == len(output) - 1 or (len(shape) == len(output) and shape[-1] == 1)
    values = np.concatenate([part.reshape(-1) for part in labels])
    number = np.issubdtype(values.dtype, np.number) or values.dtype == bool
    binary = number and bool(((values == 0) | (values == 1)).all())
    if single and classes == 1 and binary:
        return TWO
    if single and classes != 1 and number and bool((values == np.floor(values)).all()):
        return SPARSE
    if not single and (len(shape) != len(output) or shape[-1] != classes):
        raise ValueError(
            f"Expected integer labels, or one-hot labels of {classes} classes as the model has "
            f"outputs; found labels of shape {shape}. Give the head as many classes as there are."
        )
    if not single and binary:
        rows = np.concatenate([part.sum(axis=-1).reshape(-1) for part in labels])
        return ONE_HOT if bool((rows == 1).all()) else SEVERAL
    raise ValueError(
        "Expected class numbers, one-hot rows, or 0 and 1, for which a loss can be chosen; found "
        f"{values.dtype} labels of shape {shape} from {values.min():.4g} to {values.max():.4g}. "
        "Pass loss=..., e.g. 'mse' for measured values."
    )


def counted(model: keras.Model, loss: Any, metrics: Any) -> Any:
    """Replace a binary accuracy given by name by one with threshold 0, if the loss takes scores.

    Keras uses 0.5, which is a threshold for probabilities and has no meaning for scores.
    """
    known, shapes = cross_entropy(loss), output_shapes(model)
    scores = known is not None and known.family == "binary" and known.from_logits
    if not scores or not isinstance(metrics, list | tuple):
        return metrics
    names = ["binary_accuracy", "BinaryAccuracy"]
    if shapes is not None and len(shapes) == 1 and shapes[0][-1] == 1:
        names += ["accuracy", "acc"]
    named = [isinstance(metric, str) and metric in names for metric in metrics]
    pairs = zip(metrics, named, strict=True)
    return [_binary_accuracy(m, logits=True) if known_name else m for m, known_name in pairs]
