"""What can be found out about a finished run: which neurons went, and what the backbone still is like."""
