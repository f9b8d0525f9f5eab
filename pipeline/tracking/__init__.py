"""Experiment tracking: the protocol, MLflow behind it, and the environment that is recorded."""
