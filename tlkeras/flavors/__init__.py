"""Flavours of transfer learning (sections 1.8 and 1.10), one module each; none imports another.

They return plain Keras objects: models, layers and callbacks for `fit` or `tlk.fit_stages`.

>>> tlk.flavors.domain.GradientReversal(strength=0.5).strength
0.5
"""

from tlkeras.flavors import contrastive, domain, lora

__all__ = ["contrastive", "domain", "lora"]
