"""Checkpoints: the file format and the folder of a run."""
