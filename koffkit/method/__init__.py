"""Pure arithmetic of the method: gates, budget, losses, sparsity control. Touches neither disk nor device
settings."""
