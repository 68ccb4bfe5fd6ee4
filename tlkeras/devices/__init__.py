"""Accelerators: precision, XLA, and training on several devices or processes."""
