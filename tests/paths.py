"""Where the checkout is, and the shared real data beside it, which a clone elsewhere lacks."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
