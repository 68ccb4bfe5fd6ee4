"""What several processes must have in common to run one plan; asked before the first step."""

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import keras

from tlkeras.inputs import shares
from tlkeras.training.backup import digest
from tlkeras.training.stage_monitor import values
from tlkeras.utils import processes


def check(data: Any, validation: Any, batch_size: int) -> None:
    """Raises ValueError unless all processes can take equal parts of the data."""
    shares.check(data, batch_size)
    if validation is not None:
        shares.check(validation, batch_size, "validation data")


def agree(runner: Any, identity: dict[str, Any]) -> None:
    """Raises ValueError, in every process, unless they all do the same from the same beginning.

    Args:
        runner: about to start. identity: its own, as for a backup.
    """
    parts = identity | {
        "seed": runner.seed,
        "weights": digest(values(runner.model.weights)),
        "backup": runner.saved and runner.saved[0],
    }
    found = processes.differing({name: json.dumps(part) for name, part in parts.items()})
    if found:
        raise ValueError(
            f"Expected the same call of fit_stages in each of the {processes.count()} processes; "
            f"found others: {', '.join(found)}. Give each the whole data in one order, the same "
            "seed and plan, call keras.utils.set_random_seed before the model is built, and let "
            "backup_dir be a folder that all of them see."
        )


def placed(model: keras.Model) -> AbstractContextManager:
    """Where new variables stand on the devices that the model's are on (`tf.distribute`)."""
    strategy = getattr(model, "distribute_strategy", None)
    return strategy.scope() if strategy is not None else nullcontext()


@contextmanager
def explained() -> Iterator[None]:
    """Says what to do where JAX says that another process is lost."""
    try:
        yield
    except Exception as error:
        if not processes.is_lost(error):
            raise
        raise RuntimeError(
            f"Process {processes.index()} of {processes.count()} lost another one, which was "
            "killed, failed or cannot be reached: what that one wrote last says why. Start all of "
            "them again; with backup_dir the training goes on after the last epoch it saved."
        ) from error
