"""Compare two results: variants, git revisions, MLflow runs or sweep trials."""
