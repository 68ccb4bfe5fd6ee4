"""What to look at before training: a linear probe at every block."""
