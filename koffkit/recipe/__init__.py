"""The recipe: one YAML file says everything a run does."""
