"""Stage prepare: draw the embedded dataset into data/tiny."""

from __future__ import annotations

import sys
from pathlib import Path

from pipeline.data.tiny.generate import generate_tiny
from pipeline.runtime.signals import run


def main() -> None:
    """Draw the default embedded dataset; an intact one is left as it is."""
    generate_tiny(Path("data/tiny"))


if __name__ == "__main__":
    sys.exit(run(main))
