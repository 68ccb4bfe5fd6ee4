"""What came of a training: a Run, in memory and in a folder that is all one needs."""
