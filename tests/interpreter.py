"""Why the fused kernels cannot be run here, on a GPU or in Triton's interpreter; None where they can."""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec

import torch


def _leading(package: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version(package).split(".")[:2])


def why_not() -> str | None:
    """The reason to skip a test that runs a fused kernel."""
    if find_spec("triton") is None:
        return "Triton is not installed here"
    if not torch.cuda.is_available() and _leading("triton") < (3, 9) and _leading("numpy") >= (2, 4):
        return "the interpreter of this Triton (seen with 3.6, mended by 3.9) needs NumPy below 2.4"
    return None


WHY_NOT = why_not()
