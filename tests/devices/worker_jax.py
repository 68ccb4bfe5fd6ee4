"""Trains a two-stage plan as one of several processes: `worker_jax.py OUT BACKUP [die|refused]`.

Which of how many it is stands in KERAS_DISTRIBUTION_*. Writes OUT-PROCESS.npz, weights and history,
and OUT-PROCESS.txt, a line an epoch. die: process 1 is killed in the second stage. refused: writes
what calls that must be refused say to OUT-PROCESS.json. Run by test_processes.py.
"""

import json
import os
import signal
import sys
from pathlib import Path

import keras
import numpy as np
from small import easy_data, small_backbone, with_head

import tlkeras as tlk

EPOCHS = 3


class Log(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if change == "die" and me.process == 1 and epoch == EPOCHS + 1:  # the second of stage two
            os.kill(os.getpid(), signal.SIGKILL)

    def on_epoch_end(self, epoch, logs=None):
        with open(f"{out}.txt", "a") as file:
            file.write(f"stage {self._stage()} epoch {epoch}\n")

    def _stage(self):
        return 1 if len(self.model.trainable_weights) == 2 else 2  # the head alone


def refusals():
    """What each of these calls says, by name."""
    data, halves = easy_data(40), Halves(40)
    calls = {
        "uneven batches": ((data,), {"batch_size": 15}),
        "uneven last batch": ((easy_data(45),), {}),
        "uneven validation": ((data, easy_data(9)), {}),
        "uneven PyDataset": ((Halves(41),), {}),
        "generator": ((iter([data]),), {}),
        "no seed": ((data,), {"seed": None}),
        "another seed": ((data,), {"seed": me.process}),
        "other data": ((easy_data(40, seed=me.process),), {}),
        "other order": ((data if me.process else halves,), {}),
        "cached": ((data,), {"cache": True}),
    }
    said = {}
    for name, (given, options) in calls.items():
        try:
            tlk.fit_stages(model, plan, *given, **{"batch_size": 16, "seed": 1, **options})
        except ValueError as error:
            said[name] = str(error)
    try:
        tlk.find_learning_rate(model, data)
    except ValueError as error:
        said["sweep"] = str(error)
    return said


class Halves(keras.utils.PyDataset):
    """Two batches."""

    def __init__(self, count):
        super().__init__()
        self.x, self.y = easy_data(count)

    def __len__(self):
        return 2

    def __getitem__(self, number):
        part = slice(20, None) if number else slice(20)
        return self.x[part], self.y[part]


out, backup, change = Path(sys.argv[1]), sys.argv[2], (*sys.argv[3:], "")[0]
me = tlk.accelerate()
out = f"{out}-{me.process}"
keras.utils.set_random_seed(0)
model = with_head(small_backbone())
plan = [
    tlk.Stage("head", tlk.policies.head_only(), learning_rate=1e-2, epochs=EPOCHS),
    tlk.Stage("last", tlk.policies.last_blocks(1), learning_rate=1e-3, epochs=EPOCHS),
]
if change == "refused":
    Path(f"{out}.json").write_text(json.dumps(refusals()))
    sys.exit()
run = tlk.fit_stages(
    model, plan, easy_data(40), easy_data(24, seed=1), batch_size=16, seed=1,
    backup_dir=backup, callbacks=[Log()], verbose=0,
)  # fmt: skip
weights = {f"weight {number}": weight for number, weight in enumerate(model.get_weights())}
columns = {column: values for column, values in run.history.items() if column != "stage"}
np.savez(f"{out}.npz", **weights, **columns)
