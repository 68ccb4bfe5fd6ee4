"""Check before the first step that several processes agree on the plan they will train."""

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
    """Raise ValueError unless all processes can take equal parts of the data."""
    shares.check(data, batch_size)
    if validation is not None:
        shares.check(validation, batch_size, "validation data")


def agree(runner: Any, identity: dict[str, Any]) -> None:
    """Raise ValueError in every process unless all start the same training from the same state.

    Args:
        runner: the Runner of this process, about to start.
        identity: the identity of its training, as for a backup.
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
    """Context in which new variables go to the devices of the model's (`tf.distribute`)."""
    strategy = getattr(model, "distribute_strategy", None)
    return strategy.scope() if strategy is not None else nullcontext()


@contextmanager
def explained() -> Iterator[None]:
    """Context manager: if JAX reports that another process is lost, say what to do."""
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
