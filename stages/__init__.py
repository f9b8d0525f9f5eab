"""Thin DVC entry points: each reads params.yaml, calls one library function, writes its declared outputs."""

import os

# Before torch is imported. By default OpenMP's threads wait for each other by spinning; where another process
# wants the same cores, every barrier then lasts as long as a time slice (docs/LOG.md, 2026-11-22).
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
