"""Tools for before and after training: probe, recommend, interpret, predict, export."""
