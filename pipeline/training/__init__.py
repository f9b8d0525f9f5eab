"""Training: the loop, its state, what it writes."""
