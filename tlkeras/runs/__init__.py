"""The result of a training: a Run, in memory or in a self-contained folder."""
