"""Which of several processes that train together this one is."""

import sys


def count() -> int:
    """How many processes train together: those that JAX has joined."""
    return sys.modules["jax"].process_count() if _joined() else 1


def index() -> int:
    """Which of them this one is, from 0; the first writes what is written once."""
    return sys.modules["jax"].process_index() if _joined() else 0


def _joined() -> bool:
    """Asked without importing JAX, or waking up its devices."""
    return "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized()
