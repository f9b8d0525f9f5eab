"""Thin DVC entry points: each reads params.yaml, calls one library function, writes its declared outputs."""
