"""`freeze`: sets which weights learn, and returns the table that says so."""

import math
from collections.abc import Callable, Sequence

import keras

from tlkeras.blocks import internals
from tlkeras.blocks.find import Block, find_blocks
from tlkeras.freezing.batchnorm import MODES, batchnorm_layers, set_batchnorm
from tlkeras.freezing.policies import Policy
from tlkeras.utils.tables import html_table, text_table


class Learning:
    """What learns, block by block: the table that `freeze` returns.

    Attributes:
        rows: a tuple a block: name, role, "learns" or "frozen", trainable weights,
            all weights, trainable parameters, all parameters, BatchNorm mode ("" where the
            block has none).
        blocks: names of the blocks that learn.
        trainable_params, params: parameters that learn, and all of them.
        held: the weights that training must leave bit-identical.

    >>> model = tlk.add_head(tlk.load_backbone("glyph_resnet_small"), classes=3)
    >>> table = tlk.freeze(model, tlk.policies.last_blocks(1))
    >>> table.trainable_params, table.params
    (229763, 307011)
    """

    header = ("block", "role", "state", "weights", "parameters", "BatchNorm")

    def __init__(self, rows: list[tuple], held: list[keras.Variable]):
        self.rows = rows
        self.held = held
        self.blocks = [row[0] for row in rows if row[2] == "learns"]
        self.trainable_params = sum(row[5] for row in rows)
        self.params = sum(row[6] for row in rows)

    def _cells(self) -> list[tuple]:
        cells = [
            (name, role, state, f"{some_w} of {all_w}", f"{some:,} of {all_:,}", batchnorm)
            for name, role, state, some_w, all_w, some, all_, batchnorm in self.rows
        ]
        total = f"{self.trainable_params:,} of {self.params:,}"
        weights = f"{sum(r[3] for r in self.rows)} of {sum(r[4] for r in self.rows)}"
        return [*cells, ("all", "", "", weights, total, "")]

    def __repr__(self) -> str:
        return text_table(self._cells(), self.header)

    def _repr_html_(self) -> str:
        return html_table(self._cells(), self.header)


def freeze(
    model: keras.Model,
    policy: Policy | Callable[[Sequence[Block]], Sequence[Block]],
    batchnorm: str = "frozen",
) -> Learning:
    """Lets the blocks a policy chooses learn, and freezes every other weight.

    `model.compile(...)` must follow before the next `fit`: Keras keeps the old set until then.

    Args:
        model: any built Keras model with weights.
        policy: one of `tlk.policies`, or a function from blocks to the blocks that learn.
        batchnorm: "frozen", "affine" or "train" (see `tlkeras.freezing.batchnorm`), for the
            BatchNorm layers of learning backbone blocks. Those of frozen blocks are frozen
            whatever is asked for; those of the head are new and train in the ordinary way.

    Returns:
        A table of what learns.

    Raises:
        ValueError: the policy fits none of the model's blocks, or the mode is unknown.

    Source: section 1.6; section 1.9 on BatchNorm with small batches.

    >>> model = tlk.add_head(tlk.load_backbone("glyph_resnet_small"), classes=3)
    >>> tlk.freeze(model, tlk.policies.last_blocks(1))
    block   role    state   weights  parameters          BatchNorm
    ------  ------  ------  -------  ------------------  ---------
    stem    bottom  frozen  0 of 1   0 of 1,728
    stack0  middle  frozen  0 of 14  0 of 74,496         frozen
    stack1  top     learns  3 of 11  229,376 of 230,400  frozen
    head    head    learns  2 of 2   387 of 387
    all                     5 of 28  229,763 of 307,011
    """
    if batchnorm not in MODES:
        raise ValueError(f"batchnorm must be one of {', '.join(MODES)}; found {batchnorm!r}.")
    blocks = find_blocks(model)
    learning_blocks = list(policy(blocks))
    chosen = {block.name for block in learning_blocks}
    if not chosen:
        raise ValueError(f"The policy {policy} chose no block: nothing would learn.")
    set_trainable(model, {id(w) for block in learning_blocks for w in block.weights})

    modes = {}  # of each BatchNorm layer, by the id of one of its weights
    home = {id(weight): block for block in blocks for weight in block.weights}
    held = [w for block in blocks if block.name not in chosen for w in block.weights]
    for layer in batchnorm_layers(model):
        key = id(layer.moving_mean)
        if home[key].name not in chosen:
            modes[key] = "frozen"
        else:
            modes[key] = "train" if home[key].role == "head" else batchnorm
            held += [] if modes[key] == "train" else layer.non_trainable_weights
            held += layer.trainable_weights if modes[key] == "frozen" else []
        set_batchnorm([layer], modes[key])
    return Learning([_row(block, block.name in chosen, modes) for block in blocks], held)


def set_trainable(model: keras.Model, learning: set[int]) -> None:
    """Lets exactly the weights with these ids learn.

    Containers stay open, because one whose flag is False hides its children. A layer of which
    nothing learns is closed. What a composite layer holds itself (a class token) is set variable
    by variable, for its own flag would reach into its children.
    """
    layers = internals.all_layers(model)
    for layer in layers:  # one by one: setting a flag to what it is reaches no child (TensorFlow)
        layer.trainable = True
    for layer in layers:
        for variable in internals.trainable_kind(layer):
            variable.trainable = id(variable) in learning
        mine = {id(weight) for weight in layer.weights}
        if not internals.children(layer) and mine and not mine & learning:
            layer.trainable = False


def _row(block: Block, learns: bool, modes: dict[int, str]) -> tuple:
    trainable = [weight for weight in block.weights if weight.trainable]
    batchnorm = {modes[id(weight)] for weight in block.weights if id(weight) in modes}
    return (
        block.name,
        block.role,
        "learns" if learns else "frozen",
        len(trainable),
        len(block.weights),
        sum(math.prod(weight.shape) for weight in trainable),
        block.params,
        ", ".join(sorted(batchnorm)),
    )
