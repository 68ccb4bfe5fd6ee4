"""A Plan is a list of Stages, data only; recipes are named plans."""
