"""Choose among the implementations of losses and search: `fused`, `compiled` and `tiled`.

Triton kernels where they apply, on a GPU; code compiled by numba on the CPU; plain torch elsewhere, which
does everything. The environment variable KILOSEG_KERNELS forces one, for comparison.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor

from . import compiled, fused

Name = Literal["tiled", "compiled", "fused"]
NAMES: tuple[Name, ...] = get_args(Name)
VARIABLE = "KILOSEG_KERNELS"


def implementation_for(
    pixel_embeddings: Tensor, class_embeddings: Tensor, *, fused_knows: bool = True
) -> Name:
    """Return the name of the implementation that compares these pixels with these classes.

    Args:
        pixel_embeddings: (P, D) or (N, D, h, w).
        class_embeddings: (C, D).
        fused_knows: whether the Triton kernels know all options of the call.

    Raises:
        ValueError: KILOSEG_KERNELS is none of the names, or names one that does not apply.
        RuntimeError: it is "fused", and Triton or a GPU is missing.
    """
    forced = forced_implementation()
    if forced == "fused":
        fused.require(pixel_embeddings, class_embeddings)
        if not fused_knows:
            raise ValueError(
                f"{VARIABLE} is 'fused', and the kernels do not know all options of this call: a bias of "
                "distances, class weights, label smoothing, aligned corners, a sum, or more than 64 nearest "
                "classes"
            )
    elif forced == "compiled":
        reason = compiled.reason_against(pixel_embeddings, class_embeddings)
        if reason is not None:
            raise ValueError(f"{VARIABLE} is 'compiled', which does not apply: {reason}")
    if forced is not None:
        return forced
    if fused_knows and fused.supports(pixel_embeddings, class_embeddings):
        return "fused"
    return "compiled" if compiled.supports(pixel_embeddings, class_embeddings) else "tiled"


def implementation_on(device: torch.device) -> Name:
    """Return the name of the implementation that embeddings in float32 on this device get.

    Raises:
        ValueError: as `implementation_for`.
    """
    if forced := forced_implementation():
        return forced
    if device.type == "cuda":
        return "fused" if fused.TRITON_INSTALLED else "tiled"
    return "compiled" if device.type == "cpu" and compiled.reason_against_numba() is None else "tiled"


@contextmanager
def forced(name: Name) -> Iterator[None]:
    """Force an implementation for a while, unless KILOSEG_KERNELS forces another."""
    if os.environ.get(VARIABLE):
        yield
        return
    os.environ[VARIABLE] = name
    try:
        yield
    finally:
        del os.environ[VARIABLE]


def forced_implementation() -> Name | None:
    """Return the name in KILOSEG_KERNELS; None where it is not set.

    Raises:
        ValueError: it is none of the names.
    """
    value = os.environ.get(VARIABLE, "")
    for name in NAMES:
        if value == name:
            return name
    if value:
        raise ValueError(f"{VARIABLE} is {value!r}; allowed are {', '.join(map(repr, NAMES))}, or unset")
    return None
