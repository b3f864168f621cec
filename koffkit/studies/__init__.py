"""Studies: several runs of one recipe under one folder, each with a few fields changed, and their table."""
