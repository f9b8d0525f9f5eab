"""How a dataset may lie on disk."""
