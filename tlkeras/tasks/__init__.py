"""Tasks: labelled images with a fixed training, validation and test split.

`load_task` (in `load`) is the way in. Importing this makes the builders under `data/tasks/` known
to TFDS:

    import tensorflow_datasets as tfds
    import tlkeras.tasks
    tfds.load("digits", split="train", as_supervised=True)
"""

from tlkeras.tasks import builders as builders
