"""Trains a three-stage plan with a backup, to be killed: `python interrupted.py FOLDER`.

Writes FOLDER/epochs.txt, a line an epoch, and FOLDER/weights.npz at the end.
"""

import os
import sys
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras
import numpy as np
from small import easy_data, small_backbone, with_head

import tlkeras as tlk

folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)


class Log(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        with open(folder / "epochs.txt", "a") as file:
            file.write(f"{epoch}\n")


keras.utils.set_random_seed(0)
model = with_head(small_backbone())
plan = tlk.recipes.progressive(4, 4, 1e-2, 1e-3, blocks=2)
tlk.fit_stages(
    model, plan, easy_data(200), easy_data(50, seed=1), backup_dir=folder / "backup",
    callbacks=[Log()], seed=0, verbose=0,
)  # fmt: skip
weights = {str(number): weight for number, weight in enumerate(model.get_weights())}
np.savez(folder / "weights.npz", **weights)
