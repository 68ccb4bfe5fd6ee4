"""Grad-CAM: which parts of an image led to a prediction. Works on any Keras backend.

Source: Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from Deep Networks".
"""

from typing import Any

import keras
import numpy as np

from tlkeras.blocks import internals
from tlkeras.blocks.find import Block, find_blocks


def gradcam(model: keras.Model, images: np.ndarray, classes: np.ndarray) -> np.ndarray | None:
    """Return maps of the places that speak for a class, from the last feature map below the head.

    A nested backbone is looked into as well.

    Args:
        model: a model with a head.
        images: (n, height, width, channels), as the model takes them.
        classes: (n,), the number of the output to explain for each image; or (n, outputs), a
            weight for each output.

    Returns:
        Maps of shape (n, rows, columns), each scaled to 0..1; 0 where nothing speaks for the
        class. None if no block outputs a map (a vision transformer outputs tokens, for example),
        or if the model has no graph.

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
    """Return whether the block outputs a map larger than 1x1; a side of unknown size counts."""
    shape = () if block.cut is None else block.cut.shape[1:]
    return len(shape) == 3 and any(side != 1 for side in shape[:2])


def _before_softmax(net: keras.Model) -> keras.Model:
    """Return the model without a final softmax or sigmoid layer: scores do not saturate."""
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
    """Return the gradient of the wanted score with respect to every value of every map.

    Keras has no function for gradients that works on every backend, but its optimizers do: one
    step of SGD at learning rate 1 changes a weight that was 0 by its negative gradient, and the
    loss is the negative score.
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
    """Adds an offset to the maps and calls `above`; the offset is the only trainable weight."""

    def __init__(self, above: keras.Model, shape: tuple[int, ...]):
        super().__init__(dtype="float32", name="moved")
        self.offset = self.add_weight(shape=shape, initializer="zeros", name="offset")
        # Keras does not track a function, so the weights of `above` are not trained.
        self.above = lambda maps: above(maps, training=False)

    def call(self, maps: Any) -> Any:
        return self.above(maps + self.offset)
