"""Set what libraries read from the environment when they are loaded; import this before torch.

That is the one thing decided on import: later would be too late. Processes started from here inherit it. The
benchmark and the choice are in docs/LOG.md, 2026-11-26.
"""

from __future__ import annotations

import os

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Variables by which a user chooses how OpenMP's threads wait; one that is set wins over our choice."""


def prepare_libraries() -> None:
    """Let OpenMP's threads wait asleep, and matplotlib draw without a display."""
    if not any(name in os.environ for name in WAITING):
        os.environ["OMP_WAIT_POLICY"] = "passive"  # spinning, they take the cores from what they wait for
    os.environ["MPLBACKEND"] = "agg"  # a notebook's own backend is not installed everywhere


prepare_libraries()
