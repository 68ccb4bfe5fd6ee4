"""Keep track of who closed a variable (`trainable = False`): the user or tlkeras.

What the user closed stays closed; what tlkeras closed can be opened by the next plan. The flag
itself does not say who set it, so `freeze` marks every variable that it closes. Variables that are
closed without a mark were closed by the user, with one exception: many guides set
`backbone.trainable = False` on a whole backbone, and in that case the plan decides.
"""

from collections.abc import Iterable, Sequence

import keras

from tlkeras.blocks import internals
from tlkeras.blocks.find import Block, Blocks

OURS, THEIRS, REOPENED = "tlkeras", "user", "reopened"


def closed_by_user(blocks: Blocks) -> list[keras.Variable]:
    """Return the variables that a policy must not open.

    These are the variables that enable_lora closed, and those closed by hand, in a layer's
    constructor, or in the file from which the model was loaded. Not included are a backbone or a
    model that is closed as a whole, and BatchNorm that is closed in the entire backbone, because
    that is a mode.
    """
    layers, shut = internals.all_layers(blocks.model), _shut(blocks.model)
    bases = {id(v): v for layer in layers for v in lora_bases(layer)}
    backbone = [block for block in blocks if block.role != "head"]
    free = next(
        (part for part in (blocks, backbone) if _closed_whole(blocks.model, part, shut)), []
    )
    free_ids = {id(weight) for block in free for weight in block.weights}
    free_ids |= {id(variable) for variable in _closed_norms(backbone)}
    free_ids |= {id(variable) for layer in layers for variable in _new_factors(layer)}
    made = {id(v): v for layer in layers for v in internals.trainable_kind(layer)}
    return [
        variable
        for key, variable in made.items()
        if key in shut
        and (
            _mark(variable) != REOPENED
            if key in bases
            else _mark(variable) != OURS and key not in free_ids
        )
    ]


def _shut(model: keras.Model) -> set[int]:
    """Return the ids of the variables that are closed, by their own flag or by a layer's.

    Loading a model restores the flag of a closed composite layer, but leaves everything inside it
    open. So if a layer is closed and everything inside it is open, all of it counts as closed.
    """
    shut = set[int]()
    for layer in internals.all_layers(model):
        shut |= {id(v) for v in internals.trainable_kind(layer) if not v.trainable}
        if internals.flag(layer) or isinstance(layer, keras.Model):
            continue
        inside = [x for child in internals.children(layer) for x in internals.all_layers(child)]
        made = [v for x in inside for v in internals.trainable_kind(x)]
        shut |= {id(v) for v in made} if all(v.trainable for v in made) else set()
    return shut


def lora_bases(layer: keras.Layer) -> list[keras.Variable]:
    """Return the weights of `layer` that enable_lora closed to train two small factors instead."""
    held = internals.trainable_kind(layer) if getattr(layer, "lora_enabled", False) else []
    names = {variable.name for variable in held}
    return [variable for variable in held if f"lora_{variable.name}_a" in names]


def _new_factors(layer: keras.Layer) -> list[keras.Variable]:
    """Return LoRA factors that were created closed because tlkeras had closed their layer."""
    if not any(_mark(base) == OURS for base in lora_bases(layer)):
        return []
    held = internals.trainable_kind(layer)
    return [v for v in held if v.name.startswith("lora_") and not _mark(v)]


def remember(
    model: keras.Model, kept: Iterable[keras.Variable] = (), reopened: bool = False
) -> None:
    """Mark who closed the closed variables of `model`: the user those in `kept`, tlkeras the rest.

    With `reopened`, closed LoRA bases are marked as free to be opened from now on.
    """
    theirs = {id(variable) for variable in kept}
    for layer in internals.all_layers(model):
        bases = {id(variable) for variable in lora_bases(layer)}
        for variable in internals.trainable_kind(layer):
            if id(variable) in bases and (reopened or _mark(variable) == REOPENED):
                variable.closed_by = REOPENED
            elif variable.trainable:
                variable.closed_by = ""
            else:
                variable.closed_by = THEIRS if id(variable) in theirs else OURS


def forget_open(model: keras.Model) -> None:
    """Remove the marks from open variables; for code that restores trainable flags itself."""
    for layer in internals.all_layers(model):
        for variable in internals.trainable_kind(layer):
            if variable.trainable and _mark(variable) != REOPENED:
                variable.closed_by = ""


def closed_in(layer: keras.Layer) -> list[keras.Variable]:
    """Return the variables that `layer` directly holds and that `freeze` found closed by the user.

    LoRA bases are left out.
    """
    bases = {id(variable) for variable in lora_bases(layer)}
    held = internals.trainable_kind(layer)
    return [v for v in held if _mark(v) == THEIRS and id(v) not in bases]


def _mark(variable: keras.Variable) -> str:
    return getattr(variable, "closed_by", "")


def _closed_whole(model: keras.Model, blocks: Sequence[Block], closed: set[int]) -> bool:
    """True if all of `blocks` were closed together.

    Either by the flag of one model around them, or layer by layer. The latter is assumed if two or
    more layers have variables without a mark, or if a layer without weights is closed, too
    (tlkeras never closes those).
    """
    held = [(layer, v) for b in blocks for layer in b.layers for v in _learnable(b, layer)]
    wanted = {id(variable) for _, variable in held}
    if not held or not wanted <= closed:
        return False
    shut = [layer for layer in internals.all_layers(model) if not internals.flag(layer)]
    for layer in shut:
        around = isinstance(layer, keras.Model) and wanted <= {id(w) for w in layer.weights}
        if around or not layer.weights:
            return True
    return len({id(layer) for layer, variable in held if not _mark(variable)}) > 1


def _learnable(block: Block, layer: keras.Layer) -> list[keras.Variable]:
    """Return the trainable kind of variables that `layer` holds of `block`, without LoRA bases."""
    mine = {id(weight) for weight in block.weights}
    mine -= {id(variable) for variable in lora_bases(layer)}
    return [v for v in internals.trainable_kind(layer) if id(v) in mine]


def _closed_norms(blocks: Sequence[Block]) -> list[keras.Variable]:
    """Return all gammas and betas if none is open and the user closed those of two or more layers.

    Otherwise return an empty list.
    """
    layers = [layer for block in blocks for layer in block.layers]
    norms = [x for x in layers if isinstance(x, keras.layers.BatchNormalization)]
    held = [(norm, v) for norm in norms for v in internals.trainable_kind(norm)]
    anew = {id(norm) for norm, variable in held if not _mark(variable)}
    closed = len(anew) > 1 and not any(variable.trainable for _, variable in held)
    return [variable for _, variable in held] if closed else []
