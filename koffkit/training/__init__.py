"""The distillation loop and what it needs."""
