"""Learning rates block by block: one Keras optimizer that trains every block at its own rate.

`discriminative` returns an optimizer of the given kind whose learning rate is multiplied in each
block by the block's rate. It is one optimizer, not several: callbacks set its `learning_rate`,
gradients are clipped by their norm over all blocks, and it is saved with the model. `carry` passes
the state of an optimizer, such as momentums, on to that of the next stage.

This is the only package that uses private attributes of Keras optimizers.

Source: Howard & Ruder 2018, "Universal Language Model Fine-tuning", section 3.2.

>>> model = tlk.add_head(tlk.load_backbone("glyph_resnet_small"), classes=3)
>>> rates = tlk.optimizers.layerwise_decay(0.5)
>>> tlk.optimizers.discriminative(keras.optimizers.SGD(0.1, momentum=0.9), model, rates)
<discriminative SGD, learning rate 0.1: stem x 0.125, stack0 x 0.25, stack1 x 0.5, head x 1>
"""

from tlkeras.optimizers.blockwise import SUPPORTED, Discriminative, discriminative
from tlkeras.optimizers.pattern import like
from tlkeras.optimizers.rates import (
    LayerwiseDecay,
    block_rates,
    layerwise_decay,
    rates_from_dict,
    rates_to_dict,
)
from tlkeras.optimizers.state import Carried, carry, go_on, plain

__all__ = [
    "SUPPORTED",
    "Carried",
    "Discriminative",
    "LayerwiseDecay",
    "block_rates",
    "carry",
    "discriminative",
    "go_on",
    "layerwise_decay",
    "like",
    "plain",
    "rates_from_dict",
    "rates_to_dict",
]
