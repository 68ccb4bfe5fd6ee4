"""`freeze`: set which weights learn, and return a table of them."""

import math
from collections.abc import Callable, Sequence

import keras

from tlkeras.blocks import internals
from tlkeras.blocks.find import Block, Blocks, find_blocks
from tlkeras.freezing.batchnorm import MODES, batchnorm_layers, set_batchnorm
from tlkeras.freezing.closed import closed_by_user, remember
from tlkeras.freezing.inference import hold_state
from tlkeras.freezing.policies import Policy
from tlkeras.utils.tables import html_table, text_table


class Learning:
    """What learns in each block: the table that `freeze` returns.

    Attributes:
        rows: one tuple per block: name, role, "learns" or "frozen", trainable weights,
            all weights, trainable parameters, all parameters, BatchNorm mode ("" if the block has
            no BatchNorm).
        blocks: names of the blocks that learn.
        trainable_params, params: the number of parameters that learn, and of all parameters.
        kept: for each chosen block in which the user closed weights, how many.
        held: the weights that training must leave bit-identical.

    >>> model = tlk.add_head(tlk.load_backbone("glyph_resnet_small"), classes=3)
    >>> table = tlk.freeze(model, tlk.policies.last_blocks(1))
    >>> table.trainable_params, table.params
    (229763, 307011)
    """

    header = ("block", "role", "state", "weights", "parameters", "BatchNorm")

    def __init__(
        self, rows: list[tuple], held: list[keras.Variable], kept: dict[str, int] | None = None
    ):
        self.rows = rows
        self.held = held
        self.kept = kept or {}
        self.blocks = [row[0] for row in rows if row[2] == "learns"]
        self.trainable_params = sum(row[5] for row in rows)
        self.params = sum(row[6] for row in rows)

    def _cells(self) -> list[tuple]:
        cells = [
            (
                name, role, self._state(name, state), f"{some_w} of {all_w}",
                f"{some:,} of {all_:,}", batchnorm,
            )
            for name, role, state, some_w, all_w, some, all_, batchnorm in self.rows
        ]  # fmt: skip
        total = f"{self.trainable_params:,} of {self.params:,}"
        weights = f"{sum(r[3] for r in self.rows)} of {sum(r[4] for r in self.rows)}"
        return [*cells, ("all", "", "", weights, total, "")]

    def _state(self, name: str, state: str) -> str:
        return f"{state}, {self.kept[name]} closed by user" if name in self.kept else state

    def __repr__(self) -> str:
        return text_table(self._cells(), self.header)

    def _repr_html_(self) -> str:
        return html_table(self._cells(), self.header)


def freeze(
    model: keras.Model,
    policy: Policy | Callable[[Sequence[Block]], Sequence[Block]],
    batchnorm: str = "frozen",
    reopen: bool = False,
) -> Learning:
    """Let the blocks that a policy chooses learn, and freeze every other weight.

    Call `model.compile(...)` before the next `fit`: until then Keras trains the old set of weights.

    Weights that the user closed stay closed, and the table reports them: those that `enable_lora`
    closed, layers made with `trainable=False`, and layers and variables closed by hand. If the
    whole backbone is closed (`backbone.trainable = False`, as in many guides), the policy decides;
    if all BatchNorm in it is closed, the policy and `batchnorm` decide. A model loaded from a file
    does not know who closed what: a backbone that is closed in part stays so.

    Layers in frozen blocks that update a state of their own in training (SpectralNormalization)
    run as in inference.

    Args:
        model: any built Keras model with weights.
        policy: one of `tlk.policies`, or a function from blocks to the blocks that learn.
        batchnorm: "frozen", "affine" or "train" (see `tlkeras.freezing.batchnorm`): the mode of
            BatchNorm layers in backbone blocks that learn. In frozen blocks they are always
            "frozen", and in a head that learns, where they are new, always "train". Layers that
            the user closed stay "frozen".
        reopen: also open what the user closed, if the policy chooses it. Later calls of `freeze`
            then treat it as closed by tlkeras.

    Returns:
        A table of what learns.

    Raises:
        ValueError: the policy chooses no block or does not fit the model, the mode is unknown, or
            the user closed everything that the policy chooses.

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
    kept = [] if reopen else closed_by_user(blocks)
    closed = {id(variable) for variable in kept}
    kept_in = {b.name: len(closed & {id(w) for w in b.weights}) for b in learning_blocks}
    learning = may_learn(blocks, chosen, kept)
    set_trainable(model, learning)

    modes = {}  # the mode of each BatchNorm layer, by the id of its moving mean
    home = {id(weight): block for block in blocks for weight in block.weights}
    held = [w for block in blocks if block.name not in chosen for w in block.weights]
    held += [variable for variable in kept if home[id(variable)].name in chosen]
    for layer in batchnorm_layers(model):
        key = id(layer.moving_mean)
        if home[key].name not in chosen:
            modes[key] = "frozen"
        else:
            mode = "train" if home[key].role == "head" else batchnorm
            modes[key] = "frozen" if closed & {id(w) for w in layer.weights} else mode
            held += [] if modes[key] == "train" else layer.non_trainable_weights
            held += layer.trainable_weights if modes[key] == "frozen" else []
        set_batchnorm([layer], modes[key])
    held += hold_state(model, learning)
    remember(model, kept, reopen)
    rows = [_row(block, block.name in chosen, modes) for block in blocks]
    unique = list({id(weight): weight for weight in held}.values())
    return Learning(rows, unique, {name: count for name, count in kept_in.items() if count})


def may_learn(blocks: Blocks, chosen: set[str], kept: Sequence[keras.Variable]) -> set[int]:
    """Return the ids of the weights of the chosen blocks, except those the user closed (`kept`).

    Raises:
        ValueError: the user closed all of them.
    """
    closed = {id(variable) for variable in kept}
    found = {id(w) for block in blocks if block.name in chosen for w in block.weights} - closed
    if kept and not any(id(variable) in found for variable in _made_to_learn(blocks.model)):
        raise ValueError(
            f"Expected a weight that may learn in {', '.join(sorted(chosen))}; found all of them "
            "closed by hand, by their layers' trainable=False or by enable_lora. "
            "freeze(..., reopen=True) opens them."
        )
    return found


def _made_to_learn(model: keras.Model) -> list[keras.Variable]:
    return [v for layer in internals.all_layers(model) for v in internals.trainable_kind(layer)]


def set_trainable(model: keras.Model, learning: set[int]) -> None:
    """Let exactly the weights with these ids learn.

    Models stay open, because a model whose flag is False hides its children. A layer in which
    nothing learns gets a closed flag, because Keras saves only the flags of layers. Flags are set
    variable by variable, because setting a layer's flag would also set those of its children.
    """
    layers = internals.all_layers(model)
    for layer in layers:  # each one: a flag that does not change is not passed on (TensorFlow)
        layer.trainable = True
    for layer in layers:
        for variable in internals.trainable_kind(layer):
            variable.trainable = id(variable) in learning
        mine = {id(weight) for weight in layer.weights}
        if mine and not mine & learning and not isinstance(layer, keras.Model):
            internals.set_flag(layer, False)


def _row(block: Block, learns: bool, modes: dict[int, str]) -> tuple:
    trainable = [weight for weight in block.weights if weight.trainable]
    learns = learns and bool(trainable)
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
