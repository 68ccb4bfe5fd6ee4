"""Which of several processes that train together this one is, and whether they agree."""

import hashlib
import sys

import numpy as np

# What JAX reaches other processes with: named in its errors when that fails.
CONNECTIONS = ("Gloo", "NCCL", "RCCL", "coordination service", "CoordinationService", "heartbeat")


def joined() -> bool:
    """Whether JAX has joined this process to others. Asked without importing or waking JAX."""
    return "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized()


def count() -> int:
    """How many processes train together."""
    return sys.modules["jax"].process_count() if joined() else 1


def index() -> int:
    """Which of them this one is, from 0; the first writes what is written once."""
    return sys.modules["jax"].process_index() if joined() else 0


def differing(texts: dict[str, str]) -> list[str]:
    """Names of the texts that are not the same in every process.

    Every process must ask, with the same names: each waits for the others here.
    """
    from jax.experimental import multihost_utils

    digests = [list(hashlib.sha256(text.encode()).digest()) for text in texts.values()]
    of_all = multihost_utils.process_allgather(np.array(digests, "uint8"))  # (process, name, 32)
    same = (of_all == of_all[0]).all(axis=(0, 2))
    return [name for name, agreed in zip(texts, same, strict=True) if not agreed]


def is_lost(error: Exception) -> bool:
    """Whether an error says that another process cannot be reached: JAX has no type for it."""
    return count() > 1 and any(word in str(error) for word in CONNECTIONS)
