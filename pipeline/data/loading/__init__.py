"""Bootstrapped data to batches, and to pictures."""
