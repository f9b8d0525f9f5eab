"""Track experiments: the protocol, its MLflow implementation, and the recorded environment."""
