"""Compute outputs of the frozen part once, store them and train on them, where that is exact."""
