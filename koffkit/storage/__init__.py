"""Writing so that a reader sees the old content or the new, never half of it."""
