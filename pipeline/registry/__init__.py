"""Register trained networks in MLflow's model registry, serve them there, and tell where they come from."""
