"""A network as an ordered list of blocks, bottom to head: the one notion of depth.

The only package that knows how Keras stores a graph.
"""
