"""A network as an ordered list of blocks, bottom to head: the one notion of depth.

The only package that knows how Keras stores a graph.
"""

import keras  # noqa: F401 - now, so that the optimizers, which it brings in, find this room whole
