"""Decide whether a stage can train on cached outputs of its frozen blocks, and from which cut."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from tlkeras.blocks import internals
from tlkeras.blocks.find import Blocks
from tlkeras.features.cached_fit import Above, Source
from tlkeras.features.exactness import NotExact, undone
from tlkeras.features.frozen_part import FrozenPart, find_frozen_part
from tlkeras.features.store import FeatureCache, Features, in_bytes
from tlkeras.inputs import reading
from tlkeras.plans.plan import Stage


@dataclass
class CachedStage:
    """Everything that is needed to train above the cut.

    Attributes:
        above: the model from the cut to the outputs.
        source, validation: batches of cached outputs, for training and validation.
        place: text for the Run: where the cut is, and how large the outputs are.
    """

    above: Above
    source: Source
    validation: Source | None
    place: str

    @property
    def note(self) -> str:
        """Text for the Run: where outputs are cached, or why the cache is off."""
        changes = self.source.changes or (self.validation.changes if self.validation else "")
        return f"off: {changes}" if changes else self.place


def make_ready(
    model: keras.Model,
    blocks: Blocks,
    learning: Sequence[set[str]],
    stages: Sequence[Stage],
    data: Any,
    validation: Any,
    looked: Sequence[tuple],
    cache: FeatureCache,
    own: bool,
    epoch: int,
    tell: Callable[[int], None] | None = None,
    **how: Any,
) -> CachedStage:
    """Compute the outputs of the frozen blocks of the first of `stages`, where that is exact.

    Later stages in which fewer blocks are frozen use the same pass: their outputs are computed on
    the way.

    Args:
        learning: names of the blocks that learn in each of `stages`.
        looked: the results of `reading.look` for `data`, and for `validation` if it is not None.
        own: True if only this training uses the cache; outputs that later stages do not need are
            then discarded.
        epoch: the first epoch to be trained, from 0.
        tell: called with the number of examples computed so far.
        how: further arguments of `Source` for the training data.

    Raises:
        NotExact: training on cached outputs would not be the same, or would save nothing; says
            why.
    """
    stage = stages[0]
    if stage.augment is not None and stage.views is None:
        raise NotExact("augmentation draws new images every epoch; views=k would keep k of each")
    replicas = getattr(getattr(model, "distribute_strategy", None), "num_replicas_in_sync", 1)
    if replicas > 1 or keras.distribution.distribution() is not None:
        raise NotExact("several devices train together")
    examples, (shapes, *others), (first, *_) = zip(*looked, strict=True)
    if None in examples:
        raise NotExact("the data do not say how many batches an epoch has")
    if any(other != shapes for other in others):
        raise NotExact("validation data have other shapes than training data")
    rows = examples[0] * (stage.views or 1) + sum(examples[1:])

    with internals.Traces(internals.functional(model)), undone(model):
        chain = _chain(model, blocks, learning, stages, shapes)
        cache.keep(blocks, chain if own else None)
        parent: Features | None = None
        for earlier in reversed(chain[1:]):
            if cache.fits(earlier, rows):
                parent = cache.features(earlier, rows, parent)
        features = cache.features(chain[0], rows, parent)
        above = Above(chain[0].above.input, chain[0].above.output)
        above.output_names = chain[0].above.output_names
    features.tell = tell
    if chain[0].doubt:  # before data are opened, as each opening can shuffle them
        some = keras.tree.map_structure(reading.as_numpy, first)
        features.find(some) if stage.augment is None else features.try_on(some, stage.augment)

    mark = cache.mark(stage.augment, blocks)
    source = Source(data, features, mark=mark, **how)
    source.begin(epoch)
    tested = None
    if validation is not None:
        tested = Source(validation, features, batch_size=how["batch_size"])
    size = in_bytes(rows * chain[0].bytes_per_example)
    place = "on disk" if features.on_disk else "in memory"
    return CachedStage(above, source, tested, f"after {chain[0].block}, {size} {place}")


def _chain(
    model: keras.Model,
    blocks: Blocks,
    learning: Sequence[set[str]],
    stages: Sequence[Stage],
    shapes: Sequence[tuple],
) -> list[FrozenPart]:
    """Return the frozen part of the first stage, and of later ones that can use the same pass."""
    lowest = [min(map(blocks.names.index, names)) for names in learning]
    chain = [find_frozen_part(model, blocks, lowest[0], shapes)]
    reached = lowest[0]
    drawn = (stages[0].augment, stages[0].views)
    for later, low in zip(stages[1:], lowest[1:], strict=True):
        if low == 0 or (later.augment, later.views) != drawn:
            break
        if low < reached:
            try:
                earlier = find_frozen_part(model, blocks, reached := low, shapes)
            except NotExact:
                break
            if earlier.fingerprint != chain[-1].fingerprint:
                chain.append(earlier)
    return chain
