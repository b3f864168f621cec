"""Comparing two forms of one model."""
