"""Loading what ships: one backbone, many memories."""
