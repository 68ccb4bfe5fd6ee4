"""Pictures and progress: they know blocks, rates and histories, nothing else."""
