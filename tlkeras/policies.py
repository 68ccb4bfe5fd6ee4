"""Which blocks learn: the options of section 1.6 as policies, and `freeze`, which applies one.

A policy is data: a kind and its arguments, so that a Plan can be printed and stored. Wherever
a policy is expected, any function from the list of blocks to the blocks that learn will do too.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import keras

from tlkeras.batchnorm import MODES, batchnorm_layers, set_batchnorm
from tlkeras.blocks import Block, find_blocks
from tlkeras.tables import html_table, text_table


@dataclass(frozen=True)
class Policy:
    """A named choice of blocks. Made by the functions of this module."""

    kind: str
    arguments: tuple = ()

    def __call__(self, blocks: Sequence[Block]) -> list[Block]:
        """The blocks that learn, of all blocks in data-flow order."""
        return _KINDS[self.kind](blocks, *self.arguments)

    def __str__(self) -> str:
        return f"{self.kind}({', '.join(map(repr, self.arguments))})"

    @classmethod
    def of(cls, kind: str, arguments: Sequence = ()) -> "Policy":
        """The policy of that name, as a stored Plan names it. Raises ValueError if unknown."""
        if kind not in _KINDS:
            raise ValueError(f"Expected a policy of {', '.join(_KINDS)}; found {kind!r}.")
        return cls(kind, tuple(arguments))


def head_only() -> Policy:
    """Option 1, feature extraction: the backbone stays, the head learns."""
    return Policy("head_only")


def last_blocks(n: int = 1) -> Policy:
    """Option 2, partial fine-tuning: the head and the `n` backbone blocks nearest to it."""
    if n < 1:
        raise ValueError(f"last_blocks needs n of at least 1, found {n}; for none, head_only().")
    return Policy("last_blocks", (n,))


def middle_blocks() -> Policy:
    """Option 4: the middle blocks and the head learn; bottom (and top) stay."""
    return Policy("middle_blocks")


def all_blocks() -> Policy:
    """Option 3, full fine-tuning: every block learns."""
    return Policy("all_blocks")


def named(*names: str) -> Policy:
    """Exactly the blocks of these names; `*` and `?` match as in file names ("stack*")."""
    if not names:
        raise ValueError(
            "named() needs at least one block name; tlk.find_blocks(model) lists them."
        )
    return Policy("named", names)


def _head(blocks: Sequence[Block]) -> list[Block]:
    heads = [block for block in blocks if block.role == "head"]
    if not heads:
        raise ValueError(
            "Expected a model with a head, found only a backbone of "
            f"{len(blocks)} blocks. Put one on with tlk.add_head(backbone, classes=...)."
        )
    return heads


def _backbone(blocks: Sequence[Block]) -> list[Block]:
    return [block for block in blocks if block.role != "head"]


def _last(blocks: Sequence[Block], n: int) -> list[Block]:
    backbone = _backbone(blocks)
    if n > len(backbone):
        raise ValueError(
            f"last_blocks({n}) asks for more blocks than the backbone has: {len(backbone)} "
            f"({', '.join(block.name for block in backbone)}). For all, use all_blocks()."
        )
    return backbone[-n:] + _head(blocks)


def _middle(blocks: Sequence[Block]) -> list[Block]:
    middle = [block for block in blocks if block.role == "middle"]
    if not middle:
        raise ValueError(
            f"The backbone has no middle blocks, only {len(_backbone(blocks))} block(s) in all. "
            "Use last_blocks(1) or name the blocks with named(...)."
        )
    return middle + _head(blocks)


def _named(blocks: Sequence[Block], *patterns: str) -> list[Block]:
    for pattern in patterns:
        if not any(fnmatchcase(block.name, pattern) for block in blocks):
            raise ValueError(
                f"No block is called {pattern!r}. This model's blocks are: "
                f"{', '.join(block.name for block in blocks)}."
            )
    return [b for b in blocks if any(fnmatchcase(b.name, pattern) for pattern in patterns)]


_KINDS: dict[str, Callable[..., list[Block]]] = {
    "head_only": _head,
    "last_blocks": _last,
    "middle_blocks": _middle,
    "all_blocks": list,
    "named": _named,
}


class Learning:
    """What learns, block by block: the table that `freeze` returns.

    Attributes:
        rows: a tuple a block: name, role, "learns" or "frozen", trainable weights,
            all weights, trainable parameters, all parameters, BatchNorm mode ("" where the
            block has none).
        blocks: names of the blocks that learn.
        trainable_params, params: parameters that learn, and all of them.
        held: the weights that training must leave bit-identical.
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
        policy: one of `tlkeras.policies`, or a function from blocks to the blocks that learn.
        batchnorm: "frozen", "affine" or "train" (see `tlkeras.batchnorm`), for the BatchNorm
            layers of learning backbone blocks. Those of frozen blocks are frozen whatever is
            asked for; those of the head are new and train in the ordinary way.

    Returns:
        A table of what learns.

    Raises:
        ValueError: the policy fits none of the model's blocks, or the mode is unknown.
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
    layers = model._flatten_layers()
    for layer in layers:  # one by one: setting a flag to what it is reaches no child (TensorFlow)
        layer.trainable = True
    for layer in layers:
        for variable in layer._trainable_variables:
            variable.trainable = id(variable) in learning
        mine = {id(weight) for weight in layer.weights}
        if not layer._layers and mine and not mine & learning:
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
