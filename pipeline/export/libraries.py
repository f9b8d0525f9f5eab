"""Import a library of the optional extra, or say which extra installs it."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable

from pipeline.runtime.errors import KilosegError


def require(names: Iterable[str], *, format: str) -> None:
    """Check that the libraries of a format are installed, without importing them.

    Raises:
        KilosegError: one is missing.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise KilosegError(
            "a library for this format is missing",
            where=f"--format {format}",
            found=f"no {' and no '.join(missing)}",
            hint='pip install "kiloseg-pipeline[export]" (in a checkout: make setup)',
        )
