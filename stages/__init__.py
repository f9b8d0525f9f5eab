"""Thin DVC entry points: each reads params.yaml, calls one library function, writes its declared outputs."""

import os

# Before torch is imported. OpenMP's threads wait for each other by spinning, by default so long that on a machine
# whose cores something else wants too, a step took 30 times as long (docs/LOG.md, 2026-11-22).
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
