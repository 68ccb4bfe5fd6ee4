"""Which blocks learn, and how BatchNorm behaves meanwhile."""

import keras  # noqa: F401 - now, so that the optimizers, which it brings in, find this room whole
