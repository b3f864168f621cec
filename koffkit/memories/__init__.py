"""Memories after export: adding, listing, removing, compacting."""
