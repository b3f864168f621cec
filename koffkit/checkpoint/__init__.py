"""A model folder on disk: its files, its fingerprint, its tensors."""
