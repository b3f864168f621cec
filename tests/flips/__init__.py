"""Flipped bits: `koffkit verify` sees every one, and loading those in files that it reads."""
