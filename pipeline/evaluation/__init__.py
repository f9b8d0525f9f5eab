"""Metrics, evaluation of a checkpoint, and the files it leaves."""
