"""Check software and project."""
