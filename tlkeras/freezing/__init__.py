"""Which blocks learn, and how BatchNorm behaves meanwhile."""
