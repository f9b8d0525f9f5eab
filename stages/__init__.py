"""Run the DVC stages: each reads params.yaml, calls one library function, writes its declared outputs."""
