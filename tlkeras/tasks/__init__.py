"""Tasks: labelled images with a fixed training, validation and test split.

`load_task` (in `load`) loads them. Importing this package registers the builders under
`data/tasks/` with TFDS:

    import tensorflow_datasets as tfds
    import tlkeras.tasks
    tfds.load("digits", split="train", as_supervised=True)
"""

from tlkeras.tasks import builders as builders
