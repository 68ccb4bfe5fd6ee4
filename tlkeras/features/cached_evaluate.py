"""`evaluate`, with the outputs of frozen blocks taken from a cache."""

from typing import Any

import keras

from tlkeras.blocks import internals
from tlkeras.blocks.find import find_blocks
from tlkeras.features.cached_fit import Source
from tlkeras.features.exactness import NotExact
from tlkeras.features.frozen_part import find_frozen_part
from tlkeras.features.store import FeatureCache
from tlkeras.inputs import intake, reading


def evaluate(
    model: keras.Model, data: Any, cache: FeatureCache, *, batch_size: int = 32
) -> dict[str, float]:
    """Do the same as `model.evaluate`, with the outputs of frozen blocks taken from a cache.

    After `fit_stages(..., cache=cache)`, its training and validation data do not have to go
    through the frozen blocks again. If outputs cannot be cached, the whole model is evaluated.

    Args:
        model: compiled; its blocks are frozen as in its last training.
        data: as for `fit_stages`.
        cache: a cache to use; outputs that are not in it are computed and added.
        batch_size: for arrays.

    Returns:
        Loss and metrics by name, as `model.evaluate(..., return_dict=True)`.

    Raises:
        ValueError: the data do not fit the model, or do not come to an end.

    >>> model = keras.Sequential(
    ...     [keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(2)]
    ... )
    >>> x, y = np.random.normal(size=(64, 4)), np.arange(64) % 2
    >>> cache = tlk.FeatureCache()
    >>> run = tlk.fit_stages(model, tlk.recipes.head_only(1), (x, y), cache=cache, verbose=0)
    >>> scores = tlk.evaluate(model, (x, y), cache)  # nothing goes through the bottom again
    >>> bool(np.isclose(scores["loss"], model.evaluate(x, y, verbose=0)[0]))
    True
    """
    data = intake.taken(model, data, "data to evaluate")
    blocks = find_blocks(model)
    learning = [i for i, b in enumerate(blocks) if any(w.trainable for w in b.weights)]
    examples, shapes, _ = reading.look(data)
    try:
        if intake.preprocesses(model):
            raise NotExact("the model preprocesses what it is given")
        if examples is None:
            raise NotExact("the data do not say how many batches they have")
        with internals.Traces(internals.functional(model)):
            part = find_frozen_part(model, blocks, min(learning, default=len(blocks)), shapes)
        if part.call is not None:
            raise NotExact("nobody else could use the outputs")
        source = Source(data, cache.features(part, examples), batch_size=batch_size)
        source.begin(0)
    except NotExact:
        if not isinstance(data, tuple | list):
            return model.evaluate(data, verbose=0, return_dict=True)
        return model.evaluate(*data, batch_size=batch_size, verbose=0, return_dict=True)
    part.above.compile(**internals.compiled_with(model))
    return part.above.evaluate(source, verbose=0, return_dict=True)
