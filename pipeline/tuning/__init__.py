"""Sweeps: a search space over the settings, trials that survive, and a decision at the end."""
