"""Kills and faults at every operation on files; see `__main__`."""
