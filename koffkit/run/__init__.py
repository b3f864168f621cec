"""The run folder: the state of a run on disk."""
