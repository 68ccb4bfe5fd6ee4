"""Outputs of the frozen part, computed once: where that is exact, stored, and trained on."""
