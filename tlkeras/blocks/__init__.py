"""Split a network into an ordered list of blocks, from bottom to head.

This list is how the whole library measures depth. Only this package knows how Keras stores a graph.
"""

import keras  # noqa: F401 - first, as it imports tlkeras.optimizers, which import this package
