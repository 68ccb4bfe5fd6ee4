"""Prepare data for `fit`: turn lists of numbers into arrays, and report mistakes.

All data are checked before training starts. Data that shuffle themselves are not opened for it.
"""

import math
from numbers import Integral, Real
from typing import Any

import keras
import numpy as np

from tlkeras.blocks.internals import functional
from tlkeras.inputs import reading
from tlkeras.inputs.reading import shape_of

STEPS = {"training data": "steps_per_epoch", "validation data": "validation_steps"}
NO_ARRAY = (
    "Give the optional input an array, or make the model without it.",
    "Give labels as {name of the output: labels}, of those outputs that have a loss.",
    "Put ragged or sparse ones into a tf.data.Dataset: from_tensor_slices((x, y)).batch(32).",
)
INFINITE = -1  # the cardinality of a tf.data.Dataset without end


def taken(
    model: keras.Model,
    data: Any,
    what: str = "training data",
    steps: int | None = None,
    passes: int = 1,
    names: bool = False,
) -> Any:
    """Return `data` with lists of numbers and tables as arrays, after checking that they fit.

    Args:
        model: the model that will be fed.
        data: as for `fit_stages`.
        what: what the data are for, named in messages.
        steps: the number of batches per epoch, if the user gave it.
        passes: the number of epochs that will use the data.
        names: whether labels can be names.

    Raises:
        ValueError: the data cannot be used; the message says what was expected, what was found,
            and what to do.
    """
    data = as_arrays(data)
    _check_kind(data, what)
    _check_end(data, what, steps, passes)
    example = reading.example_of(data)
    if example is None:
        return data
    batches = not isinstance(data, tuple | list)
    parts = _parts(model, example, what)
    if batches and any(shape_of(leaf) == () for leaf in keras.tree.flatten(parts)):
        raise ValueError(_unbatched(what))
    if not preprocesses(model):
        _check_inputs(model, parts[0], what, batches)
        if len(parts) > 1 and not names:
            _check_labels(parts[1], what)
    _check_lengths(parts, what)
    return data


def as_arrays(data: Any) -> Any:
    """Convert a tuple or list of arrays, lists, tables and None to a tuple of arrays, without None.

    A single array becomes a tuple of one. Other data are returned unchanged.
    """
    if hasattr(data, "__array__"):
        data = (data,)
    if not isinstance(data, tuple | list):
        return data
    return tuple(map(_as_array, reading.without_none(data)))


def _as_array(part: Any) -> Any:
    if hasattr(part, "to_numpy"):  # a table or a column of one
        return part.to_numpy()
    if isinstance(part, dict):
        return {name: _as_array(inner) for name, inner in part.items()}
    if not isinstance(part, tuple | list):
        return part
    if all(np.isscalar(leaf) for leaf in keras.tree.flatten(part)):
        return np.asarray(part)
    return type(part)(map(_as_array, part))


def divided(data: Any, validation: Any, part: float) -> tuple[Any, Any]:
    """Split off the last examples of arrays for validation, as `fit(validation_split=)` does."""
    if validation is not None or not isinstance(data, tuple | list):
        found = "validation data as well" if validation is not None else type(data).__name__
        raise ValueError(
            f"Expected arrays (x, y) for all stages, and no validation data, for validation_split; "
            f"found {found}."
        )
    arrays = reading.without_none(data)
    count = len(keras.tree.flatten(arrays)[0])
    at = math.floor(count * (1 - part)) if 0 < part < 1 else 0
    if not 0 < at < count:
        raise ValueError(
            "Expected a validation_split between 0 and 1 that leaves examples on both sides; "
            f"found {part} of {count} examples."
        )
    return (
        keras.tree.map_structure(lambda array: array[:at], arrays),
        keras.tree.map_structure(lambda array: array[at:], arrays),
    )


def indexed(data: Any) -> bool:
    """True if a batch of the data can be read by its number."""
    return isinstance(data, tuple | list | keras.utils.PyDataset)


def preprocesses(model: keras.Model) -> bool:
    """True if the model's own `fit` preprocesses its data, as that of a KerasHub task does."""
    own = callable(getattr(model, "preprocess_samples", None))
    return own and getattr(model, "preprocessor", None) is not None


def learns_alone(model: keras.Model) -> bool:
    """True if the model has its own `train_step` or `compute_loss`: it may not need labels."""
    kind, plain = type(model), keras.Model
    return kind.train_step is not plain.train_step or kind.compute_loss is not plain.compute_loss


def check_class_weight(data: Any, class_weight: dict[int, float] | None) -> None:
    """Raise ValueError if `fit` would refuse `class_weight`, or could not apply it."""
    numbers = isinstance(class_weight, dict) and all(isinstance(k, Real) for k in class_weight)
    if class_weight is not None and not numbers:
        raise ValueError(
            "class_weight must be a dict with a weight for each class number, {0: 1.0, 1: 2.5}; "
            f"found {class_weight!r}. scikit-learn's compute_class_weight('balanced', ...) returns "
            "weights with which every class counts the same."
        )
    example = reading.example_of(data) if class_weight is not None else None
    parts = reading.without_none(example) if isinstance(example, tuple | list) else ()
    outputs = len(parts) > 1 and keras.tree.is_nested(parts[1])
    if len(parts) > 2 or outputs:
        raise ValueError(
            "Expected one array of labels and no sample_weight in the data for class_weight, not "
            f"both; found {'several outputs' if outputs else 'a sample_weight'}. Give each example "
            "a sample_weight into which that of its class is multiplied."
        )


def _check_kind(data: Any, what: str) -> None:
    """Raise ValueError if data are neither proper arrays nor something that yields batches."""
    if isinstance(data, tuple | list):
        for part, advice in zip(data, NO_ARRAY, strict=False):
            for leaf in keras.tree.flatten(part):
                if not hasattr(leaf, "__array__"):
                    raise ValueError(
                        f"Expected {what} as arrays; found a {type(leaf).__name__}. "
                        + (advice if leaf is None else NO_ARRAY[-1])
                    )
    elif not (hasattr(data, "__iter__") or isinstance(data, keras.utils.PyDataset)):
        raise ValueError(
            f"Expected {what} as arrays (x, y), a tf.data.Dataset or a PyDataset; found "
            f"{type(data).__name__}."
        )


def _check_end(data: Any, what: str, steps: int | None, passes: int) -> None:
    name = STEPS.get(what)
    advice = f"Pass {name}=..., how many batches make an epoch" if name else "Pass so many batches"
    if steps is not None:
        if not counts(steps):
            raise ValueError(f"Expected {name} of 1 or more; found {steps!r}.")
    elif endless(data):
        raise ValueError(
            f"Expected {what} that come to an end; found {type(data).__name__} without one. "
            f"{advice}, or data.take(...)."
        )
    elif hasattr(data, "__next__") and passes > 1:
        raise ValueError(
            f"Expected {what} that can be begun again in each of {passes} epochs; found a "
            "generator, which the first epoch uses up. Pass arrays, a tf.data.Dataset or a "
            f"PyDataset, or {name}=... if it never ends."
        )


def counts(number: Any) -> bool:
    """True for a whole number of examples or batches, of Python or NumPy, that is 1 or more."""
    return isinstance(number, Integral) and int(number) >= 1


def endless(data: Any) -> bool:
    """True if the data report that they have no end."""
    if isinstance(data, keras.utils.PyDataset):
        return reading.length(data) is None
    count = getattr(data, "cardinality", None)
    return callable(count) and int(count()) == INFINITE


def _parts(model: keras.Model, example: Any, what: str) -> tuple:
    """Return (x, y) or (x, y, sample_weight); (x,) for a model that needs no labels."""
    if isinstance(example, dict):
        x, y = [*example, "label"][:2]
        raise ValueError(
            f"Expected {what} as pairs (x, y); found dictionaries with "
            f"{', '.join(map(str, example))}. Map them first: data.map(lambda d: (d[{x!r}], "
            f"d[{y!r}]))."
        )
    parts = reading.without_none(reading.as_parts(example))
    alone = len(parts) == 1 and (learns_alone(model) or preprocesses(model))
    if len(parts) not in (2, 3) and not alone:
        raise ValueError(
            f"Expected {what} as (x, y) or (x, y, sample_weight), inputs with their labels; found "
            f"{len(parts)} item(s)" + (": inputs without labels." if len(parts) == 1 else ".")
        )
    return parts


def _unbatched(what: str) -> str:
    return f"Expected {what} in batches; found single examples. Batch them first: data.batch(32)."


def _check_lengths(parts: tuple, what: str) -> None:
    lengths = []
    for name, part in zip(("x", "y", "sample_weight"), parts, strict=False):
        shapes = [shape for leaf in keras.tree.flatten(part) if (shape := shape_of(leaf))]
        lengths += [(shape[0], name) for shape in shapes if shape[0] is not None]
    if len({count for count, _ in lengths}) > 1:
        counts = ", ".join(f"{count} in {name}" for count, name in dict.fromkeys(lengths))
        raise ValueError(
            f"Expected {what} with a label for every example, and a list or a dict to stand for "
            f"several inputs or outputs; found {counts}. Pair them up, or np.stack them, first."
        )


def _check_labels(labels: Any, what: str) -> None:
    for leaf in keras.tree.flatten(labels):
        kind = str(getattr(leaf, "dtype", "")).removeprefix("<dtype: '").rstrip("'>")
        if kind.startswith(("<U", "|S", "S", "string", "str", "object")):
            found = f" ({str(np.ravel(leaf)[0])!r})" if isinstance(leaf, np.ndarray) else ""
            raise ValueError(
                f"Expected numbers as labels of the {what}; found names{found}. Number them "
                "first: names, y = np.unique(y, return_inverse=True)."
            )


def _check_inputs(model: keras.Model, x: Any, what: str, batches: bool) -> None:
    """Check that there are as many arrays as inputs; for a single input, also check its shape."""
    net, leaves = functional(model), keras.tree.flatten(x)
    if net is not None and isinstance(x, tuple | list) and len(leaves) != len(net.inputs):
        raise ValueError(
            f"Expected {len(net.inputs)} input(s) in {what}, as the model has, because a list "
            f"stands for several inputs; found {len(leaves)}. Make one array of many examples: "
            "np.stack(x)."
        )
    if net is None:
        return
    kinds = {str(getattr(leaf, "dtype", "")) for leaf in leaves if isinstance(leaf, np.ndarray)}
    odd = sorted(kind for kind in kinds if np.dtype(kind).kind in "OSU")
    if odd and all(tensor.dtype != "string" for tensor in net.inputs):
        raise ValueError(
            f"Expected numbers as inputs of the {what}; found an array of {odd[0]}. A table with "
            "columns of several types becomes one: x.astype('float32'), after columns of words "
            "were numbered or left out."
        )
    if len(net.inputs) != 1 or len(leaves) != 1:
        return
    expected, found = tuple(net.inputs[0].shape), shape_of(leaves[0])
    if found is None or fits(found, expected):
        return
    if batches and fits((None, *found), expected):
        raise ValueError(_unbatched(what))
    advice = "Resize or reshape them first."
    if len(expected) == 4 and (len(found) == 3 or found[-1] == 1):
        grey = "x[..., None]" if len(found) == 3 else "x"
        advice = f"Give grey pictures all channels: np.repeat({grey}, {expected[-1]}, -1)."
    raise ValueError(
        f"Expected {what} with examples of shape {expected[1:]}, as the model has its input; found "
        f"{found[1:] or 'one number'}. {advice}"
    )


def fits(found: tuple[int | None, ...], expected: tuple[int | None, ...]) -> bool:
    """True if Keras accepts the shape `found` for `expected`; it adds or drops a last axis of 1."""
    if len(found) == len(expected) - 1 and expected[-1] == 1:
        found = (*found, 1)
    if len(found) == len(expected) + 1 and found[-1] == 1:
        found = found[:-1]
    pairs = zip(found[1:], expected[1:], strict=False)
    return len(found) == len(expected) and all(a == b or None in (a, b) for a, b in pairs)
