"""Sweep settings: a search space, trials that resume after any kill, and the best values kept at the end."""
