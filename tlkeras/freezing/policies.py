"""Policies choose which blocks learn: the options of section 1.6.

A policy is data (its kind and arguments), so a Plan can be printed and stored. Wherever a policy
is expected, any function from the list of blocks to the blocks that learn can be used instead.

>>> model = tlk.add_head(tlk.load_backbone("glyph_resnet_small"), classes=3)
>>> tlk.freeze(model, lambda blocks: [block for block in blocks if block.params < 100_000]).blocks
['stem', 'stack0', 'head']
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from tlkeras.blocks.find import Block


@dataclass(frozen=True)
class Policy:
    """A named choice of blocks, made by the functions of this module.

    Attributes:
        kind: the name of the function.
        arguments: the arguments it was given.

    >>> tlk.policies.last_blocks(2)
    Policy(kind='last_blocks', arguments=(2,))
    >>> print(tlk.policies.last_blocks(2))
    last_blocks(2)
    """

    kind: str
    arguments: tuple = ()

    def __call__(self, blocks: Sequence[Block]) -> list[Block]:
        """Return the blocks that learn, given all blocks in data-flow order."""
        return _KINDS[self.kind](blocks, *self.arguments)

    def __str__(self) -> str:
        return f"{self.kind}({', '.join(map(repr, self.arguments))})"

    @classmethod
    def of(cls, kind: str, arguments: Sequence = ()) -> "Policy":
        """Return the policy of that kind, as stored in a Plan. Raises ValueError if unknown."""
        if kind not in _KINDS:
            raise ValueError(f"Expected a policy of {', '.join(_KINDS)}; found {kind!r}.")
        return cls(kind, tuple(arguments))


def head_only() -> Policy:
    """Option 1, feature extraction: the backbone stays frozen and the head learns.

    >>> model = tlk.add_head(tlk.load_backbone("glyph_resnet_small"), classes=3)
    >>> tlk.freeze(model, tlk.policies.head_only()).blocks
    ['head']
    """
    return Policy("head_only")


def last_blocks(n: int = 1) -> Policy:
    """Option 2, partial fine-tuning: the head and the `n` backbone blocks nearest to it learn.

    Raises ValueError if `n` is below 1, and, when applied, if the backbone has fewer blocks.

    >>> model = tlk.add_head(tlk.load_backbone("glyph_resnet_small"), classes=3)
    >>> tlk.freeze(model, tlk.policies.last_blocks(2)).blocks
    ['stack0', 'stack1', 'head']
    """
    if n < 1:
        raise ValueError(f"last_blocks needs n of at least 1, found {n}; for none, head_only().")
    return Policy("last_blocks", (n,))


def middle_blocks() -> Policy:
    """Option 4: the middle blocks and the head learn; bottom and top stay frozen.

    Raises ValueError, when applied, if the backbone has no middle blocks.

    >>> model = tlk.add_head(tlk.load_backbone("glyph_resnet_small"), classes=3)
    >>> tlk.freeze(model, tlk.policies.middle_blocks()).blocks
    ['stack0', 'head']
    """
    return Policy("middle_blocks")


def all_blocks() -> Policy:
    """Option 3, full fine-tuning: every block learns.

    >>> model = tlk.add_head(tlk.load_backbone("glyph_resnet_small"), classes=3)
    >>> tlk.freeze(model, tlk.policies.all_blocks()).blocks
    ['stem', 'stack0', 'stack1', 'head']
    """
    return Policy("all_blocks")


def named(*names: str) -> Policy:
    """Exactly the blocks with these names learn; `*` and `?` match as in file names ("stack*").

    Raises ValueError if no name is given, and, when applied, if a name matches no block.

    >>> model = tlk.add_head(tlk.load_backbone("glyph_resnet_small"), classes=3)
    >>> tlk.freeze(model, tlk.policies.named("stem", "stack*")).blocks
    ['stem', 'stack0', 'stack1']
    """
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
