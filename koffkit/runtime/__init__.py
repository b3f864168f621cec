"""Loading, checking and describing exports: one backbone, many memories."""
