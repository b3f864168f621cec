"""Several processes on one run: who they are, and what they tell each other."""
