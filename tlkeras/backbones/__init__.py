"""Pretrained networks, and heads to put on them."""
