"""Where in an image a network looked: Grad-CAM, on any Keras backend.

Source: Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from Deep Networks".
"""

from typing import Any

import keras
import numpy as np

from tlkeras.blocks import internals
from tlkeras.blocks.find import Block, find_blocks


def gradcam(model: keras.Model, images: np.ndarray, classes: np.ndarray) -> np.ndarray | None:
    """What speaks for a class, on the last feature map, also that of a nested backbone.

    Args:
        model: with a head. images: (n, height, width, channels), as the model takes them.
        classes: (n,), of each image the number of the output that is explained; or (n, outputs),
            how much each of them counts.

    Returns:
        (n, rows, columns) of the map, each scaled to 0..1; 0 where nothing speaks for the class.
        None if no block leaves a map (a vision transformer's tokens, say).

    >>> model = tlk.add_head(tlk.load_backbone("glyph_resnet_small", image_size=32), classes=3)
    >>> gradcam(model, np.zeros((2, 32, 32, 3)), np.array([0, 2])).shape
    (2, 4, 4)
    """
    net = internals.functional(model)
    if net is None:
        return None
    with internals.Traces(net):
        scored = _before_softmax(net)
        blocks = find_blocks(scored)
        last = next((b for b in reversed(blocks) if b.role != "head" and _is_map(b)), None)
        if last is None:
            return None
        below, above = blocks.split(last.name)
        maps = keras.ops.convert_to_numpy(below(images, training=False)).astype("float32")
        every = np.eye(scored.output_shape[-1], dtype="float32")
        wanted = every[classes] if classes.ndim == 1 else classes.astype("float32")
        slopes = _slopes(above, maps, wanted)
    weights = slopes.mean(axis=(1, 2), keepdims=True)
    heat = np.maximum((weights * maps).sum(-1), 0)
    return heat / np.maximum(heat.max(axis=(1, 2), keepdims=True), np.finfo("float32").tiny)


def _is_map(block: Block) -> bool:
    """Whether a map of more than one place leaves it; an open side counts as many."""
    shape = () if block.cut is None else block.cut.shape[1:]
    return len(shape) == 3 and any(side != 1 for side in shape[:2])


def _before_softmax(net: keras.Model) -> keras.Model:
    """The same model up to the scores, which unlike probabilities do not level off."""
    for node in reversed(internals.nodes(net)):
        if node.outputs[0] is net.outputs[0]:
            last = node.operation
            named = getattr(last, "activation", None) in (
                keras.activations.softmax,
                keras.activations.sigmoid,
            )
            if isinstance(last, keras.layers.Softmax) or (
                isinstance(last, keras.layers.Activation) and named
            ):
                return keras.Model(net.input, node.input_tensors[0])
    return net


def _slopes(above: keras.Model, maps: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """How the wanted score changes with each number of each map.

    Keras has no call for gradients that every backend knows, but its optimizers have: a step of
    SGD at rate 1 moves numbers that were 0 by exactly their slope.
    """
    moved = _Moved(above, maps.shape)
    moved.compile(
        keras.optimizers.SGD(1.0),
        loss=lambda wanted, scores: -keras.ops.sum(wanted * scores, axis=-1),
        jit_compile=False,
    )
    moved.train_on_batch(maps, wanted)
    return keras.ops.convert_to_numpy(moved.offset) * len(maps)  # the loss is a mean


class _Moved(keras.Model):
    """`above`, of maps to which an offset is added, which is all that learns."""

    def __init__(self, above: keras.Model, shape: tuple[int, ...]):
        super().__init__(dtype="float32", name="moved")
        self.offset = self.add_weight(shape=shape, initializer="zeros", name="offset")
        # As a function it is not tracked, so its own weights stay as they are.
        self.above = lambda maps: above(maps, training=False)

    def call(self, maps: Any) -> Any:
        return self.above(maps + self.offset)
