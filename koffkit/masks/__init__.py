"""Masks, which say which units stay: in memory, on disk, and what they cut."""
