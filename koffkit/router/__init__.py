"""Which memory fits a text."""
