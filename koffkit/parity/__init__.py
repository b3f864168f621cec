"""Whether two forms of one model compute the same."""
