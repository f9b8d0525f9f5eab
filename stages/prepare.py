"""Run the stage prepare: draw the embedded dataset into data/tiny."""

from __future__ import annotations

import pipeline.runtime.before_torch  # noqa: F401
from pipeline.config.paths import TINY
from pipeline.data.tiny.generate import generate_tiny
from pipeline.runtime.process import run_process


def main() -> None:
    """Draw the default embedded dataset; an intact one is left as it is."""
    generate_tiny(TINY)


if __name__ == "__main__":
    run_process(main)
