"""Training in several processes: the index of this one, and whether all of them agree."""

import hashlib
import sys

import numpy as np

# The parts of JAX that talk to other processes; its errors name them when that fails.
CONNECTIONS = ("Gloo", "NCCL", "RCCL", "coordination service", "CoordinationService", "heartbeat")


def joined() -> bool:
    """True if JAX has joined this process to others. Neither imports nor initialises JAX."""
    return "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized()


def count() -> int:
    """Return the number of processes that train together."""
    return sys.modules["jax"].process_count() if joined() else 1


def index() -> int:
    """Return the index of this process. Process 0 writes whatever is written only once."""
    return sys.modules["jax"].process_index() if joined() else 0


def differing(texts: dict[str, str]) -> list[str]:
    """Return the names of the texts that are not the same in every process.

    Every process must call this, with the same names: each one waits here for the others.
    """
    from jax.experimental import multihost_utils

    digests = [list(hashlib.sha256(text.encode()).digest()) for text in texts.values()]
    of_all = multihost_utils.process_allgather(np.array(digests, "uint8"))  # (process, name, 32)
    same = (of_all == of_all[0]).all(axis=(0, 2))
    return [name for name, agreed in zip(texts, same, strict=True) if not agreed]


def is_lost(error: Exception) -> bool:
    """True if an error says that another process cannot be reached; JAX has no type for that."""
    return count() > 1 and any(word in str(error) for word in CONNECTIONS)
