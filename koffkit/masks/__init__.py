"""Masks: which units stay. In memory, on disk, and what they cut."""
