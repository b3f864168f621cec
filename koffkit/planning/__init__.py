"""Plans: what a run would do."""
