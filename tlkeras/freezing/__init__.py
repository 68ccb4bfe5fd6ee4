"""Choose which blocks learn, and how BatchNorm behaves while they do."""

import keras  # noqa: F401 - first, as it imports tlkeras.optimizers, which import this package
