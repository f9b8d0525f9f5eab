"""Compute losses and searches in plain torch on any device, one tile of pixels x classes at a time."""
