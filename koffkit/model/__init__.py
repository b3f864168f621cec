"""Attaching gates and memories to a transformers model."""
