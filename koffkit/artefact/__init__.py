"""The format of what ships. No other room knows the names of its files."""
