"""What to know before training, and after it: probe, recommend, interpret, predict, export."""
