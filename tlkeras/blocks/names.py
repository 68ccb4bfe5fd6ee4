"""Readable names for blocks, from the names of the layers in them."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise

import keras

from tlkeras.blocks import graph
from tlkeras.blocks.parts import Part, kernels


def block_names(
    backbone: Sequence[Sequence[Part]], decoder: Sequence[Sequence[Part]], head: bool
) -> list[str]:
    """Return names for the blocks of a backbone and a decoder, and for the head if there is one."""
    runs = [*backbone, *decoder]
    votes, anew = [_votes(run) for run in runs], {""}
    for (word, mine), (other, theirs) in pairwise(votes):
        common = set(mine) & set(theirs) if word == other else ()
        if len(common) > 1:
            anew.add(word)  # its numbers start again in every stage, so they are of no use
        for number in common:  # the end of a stage can be in the next block: more kernels decide
            fewer, more = sorted((mine, theirs), key=lambda numbers: numbers[number])
            if len(fewer) > 1 or 2 * fewer[number] < more[number]:
                del fewer[number]
    words = [word for word, _ in votes]
    names = [
        ""
        if word in anew or not numbers
        else word + "-".join(map(str, sorted({min(numbers), max(numbers)})))
        for word, numbers in votes
    ]
    if runs and (
        not names[0]
        or words[0] not in words[1:]
        or sum(part.kernels for part in runs[0]) < 2
        or any("stem" in op.name for part in runs[0] for op in part.ops)
    ):
        names[0] = "stem"
    # A name can come twice: in two towers (CLIP), or because its numbers start again.
    towers = [
        f"{re.sub('_[0-9]+$', '', run[0].home or '')}/{name}"
        for run, name in zip(runs, names, strict=True)
    ]
    names = [
        name
        if name and names.count(name) == 1
        else tower
        if name and towers.count(tower) == 1
        else f"{'block' if i < len(backbone) else 'decoder'}{i}"
        for i, (name, tower) in enumerate(zip(names, towers, strict=True))
    ]
    names += ["head"] * head
    return [f"{name}.{i}" if name in names[:i] else name for i, name in enumerate(names)]


def _votes(run: Sequence[Part]) -> tuple[str, Counter[int]]:
    """Return the word that most layer names of a block begin with, and its numbers as a Counter.

    For example ("conv", {3: 12}) or ("block", {4: 9, 5: 15}); ("", {}) if no word is in at least
    half of them.

    Each layer counts as often as it has kernels. If no layer with a kernel has a name of its own,
    all layers count once. Names that Keras makes up (`conv2d_17`) never count, because they change
    when the model is built a second time.
    """
    counts = {
        op.name: kernels(graph.owners(op)) for part in run for op in part.ops if not _made_up(op)
    }
    if not any(counts.values()):
        counts = dict.fromkeys(counts, 1)
    words: defaultdict[str, Counter[int]] = defaultdict(Counter)
    for name, count in counts.items():
        match = re.match(r"(.*?[A-Za-z].*?)(\d+)", name)
        if match and count:
            words[match[1]][int(match[2])] += count
    word = max(words, key=lambda word: words[word].total(), default="")
    agreed = word and 2 * words[word].total() >= sum(counts.values())
    return (word, words[word]) if agreed else ("", Counter())


def _made_up(op: keras.Operation) -> bool:
    snake = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", type(op).__name__)
    snake = re.sub("([a-z])([A-Z])", r"\1_\2", snake).lower()
    return re.fullmatch(rf"{re.escape(snake)}(_\d+)?", op.name) is not None
