"""Set what matters while libraries are loaded; import this before torch.

That is the one thing decided on import: later would be too late. Processes started from here inherit what
libraries read from the environment. The benchmarks and the choices are in docs/LOG.md, 2026-11-26.
"""

from __future__ import annotations

import gc
import os

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Variables by which a user chooses how OpenMP's threads wait; one that is set wins over our choice."""
OBJECTS_BETWEEN_COLLECTIONS = 10_000
"""Threshold of Python's garbage collection. At its own 700 to 2,000, collecting takes a second of the five in
which torch, torchvision and MLflow are loaded, and finds next to nothing."""


def prepare_libraries() -> None:
    """Let OpenMP wait asleep, matplotlib draw without a display, and collect garbage less often."""
    if not any(name in os.environ for name in WAITING):
        os.environ["OMP_WAIT_POLICY"] = "passive"  # spinning, they take the cores from what they wait for
    os.environ["MPLBACKEND"] = "agg"  # a notebook's own backend is not installed everywhere
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)


prepare_libraries()
