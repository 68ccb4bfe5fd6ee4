"""The data a model is fed: check it, bring it into order, and augment it."""
