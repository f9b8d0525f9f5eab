"""What every fused function needs before it can launch: is Triton here, do the tensors fit, how large are the
tiles.

Imports cleanly where Triton is not installed (macOS, CPU-only builds); the functions then raise with the
reason.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..embeddings import compute_dtype

TRITON_INSTALLED = find_spec("triton") is not None
SMALLEST_DIM = 4
LARGEST_DIM = 256
LARGEST_TILE = 256
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIMILARITIES = ("distance", "cosine")


@dataclass(frozen=True)
class Tile:
    """How one program is cut: pixels, classes, warps, loads in flight, most registers of a thread."""

    pixels: int
    classes: int
    warps: int
    stages: int
    registers: int | None = None

    def options(self) -> dict[str, Any]:
        """Triton's launch options; fused multiply-adds by name: from 3.10 on they are not the default."""
        options = {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}
        return options if self.registers is None else options | {"maxnreg": self.registers}


LARGE_SHARED_MEMORY = 200 * 1024
SMALL_TILES = {128: Tile(32, 32, 4, 1), 256: Tile(16, 16, 4, 1)}
"""By padded D, for rows that are not all bf16 on a GPU with less shared memory than that: those of an A100
(163 KiB) and of consumer cards (99 KiB). By ptxas for sm_80 and sm_89: fits, and spills least."""


def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that one program can have; in the interpreter as on an H100."""
    if device.type != "cuda":
        return LARGE_SHARED_MEMORY
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin


def small_tile(constants: dict[str, Any], device: torch.device) -> Tile | None:
    """The tile to take instead of the usual one where the device has no room for that; else None.

    Args:
        constants: from `arithmetic`.
        device: to launch on.
    """
    if constants["ROW_PARTS"] == 1 or shared_memory(device) >= LARGE_SHARED_MEMORY:
        return None
    return SMALL_TILES.get(constants["PADDED_DIM"])


def supports(pixel_embeddings: torch.Tensor, class_embeddings: torch.Tensor) -> bool:
    """True where the fused functions can take these two tensors.

    That is: Triton is installed, D is 4..256, both are fp32, bf16 or fp16, and both lie on one CUDA device,
    or anywhere while TRITON_INTERPRET=1 is set (Triton's interpreter, thousands of times slower: for tests
    only).
    """
    return _reason_against(pixel_embeddings, class_embeddings) is None


def require(pixel_embeddings: torch.Tensor, class_embeddings: torch.Tensor, similarity: str) -> None:
    """Raises what `supports` only answers: RuntimeError for the machine, ValueError for the call."""
    if similarity not in SIMILARITIES:
        raise ValueError(f"similarity is {similarity!r}; allowed: {', '.join(SIMILARITIES)}")
    if class_embeddings.dim() != 2 or class_embeddings.shape[0] < 1:
        raise ValueError(
            f"class_embeddings has shape {tuple(class_embeddings.shape)}; allowed: (C, D) with C >= 1"
        )
    reason = _reason_against(pixel_embeddings, class_embeddings)
    if reason is not None:
        raise reason


def _reason_against(pixel_embeddings: torch.Tensor, class_embeddings: torch.Tensor) -> Exception | None:
    hint = "use the functions of models.losses.exact and models.nearest instead"
    if not TRITON_INSTALLED:
        return RuntimeError(f"the fused kernels need Triton, which is not installed; {hint}")
    on_gpu = pixel_embeddings.is_cuda and pixel_embeddings.device == class_embeddings.device
    if not on_gpu and os.environ.get("TRITON_INTERPRET") != "1":
        return RuntimeError(
            f"the fused kernels need both tensors on one CUDA device; found {pixel_embeddings.device} and "
            f"{class_embeddings.device}; {hint}, or set TRITON_INTERPRET=1 to try the kernels on the CPU"
        )
    dim = class_embeddings.shape[-1]
    if not SMALLEST_DIM <= dim <= LARGEST_DIM:
        return ValueError(f"embedding size D is {dim}; allowed: {SMALLEST_DIM}..{LARGEST_DIM}; {hint}")
    for name, tensor in (("pixel_embeddings", pixel_embeddings), ("class_embeddings", class_embeddings)):
        if tensor.dtype not in DTYPES:
            return ValueError(f"{name} is {tensor.dtype}; allowed: float32, bfloat16, float16; {hint}")
    return None


def arithmetic(pixel_dtype: torch.dtype, class_dtype: torch.dtype, dim: int) -> dict[str, Any]:
    """The compile-time constants for D and for the precision of the two matrix products.

    Products of embeddings (the similarity): a distance is a small difference of large terms, so nothing may
    be lost. bf16 times bf16, and fp16 rows in one TF32 pass, are exact in the fp32 accumulator. fp32 rows are
    split in two and take three TF32 passes, about 2^-21 for unit vectors; true fp32 products ("ieee") would
    gain a bit or two below the rounding of that same difference, at several times the cost.

    Sums of embeddings weighted by probabilities (the gradients): as bf16 numbers of 8 significant bits, which
    have fp32's range. With bf16 and fp16 rows a weight is one such number, and a row is exactly one (bf16) or
    two (fp16); with fp32 rows each is two, and the gradient good to about 1e-5.
    """
    import triton
    import triton.language as tl

    from . import loss_kernels as kernels

    dtypes = {pixel_dtype, class_dtype}
    split = torch.float32 in dtypes
    only_bf16 = dtypes == {torch.bfloat16}
    # The interpreter multiplies bf16 wrongly; it gets the same numbers, rounded alike, as fp32.
    interpreted = not isinstance(kernels.loss_forward, triton.JITFunction)
    return {
        "DIM": dim,
        "PADDED_DIM": max(16, 1 << (dim - 1).bit_length()),
        "WORK": tl.bfloat16 if only_bf16 else tl.float32,
        "SPLIT": split,
        "FACTOR_PARTS": 2 if split else 1,
        "ROW_PARTS": 1 if only_bf16 else 2,
        "PART": tl.float32 if interpreted else tl.bfloat16,
    }


def class_terms(class_embeddings: torch.Tensor, similarity: str, absent: float) -> torch.Tensor:
    """|w|² ("distance") or 0 ("cosine") of each class, fp32, then `absent` up to a whole number of tiles."""
    num_classes = class_embeddings.shape[0]
    padded = -(-num_classes // LARGEST_TILE) * LARGEST_TILE
    terms = torch.full((padded,), absent, dtype=torch.float32, device=class_embeddings.device)
    if similarity == "distance":
        write_squared_lengths(class_embeddings, terms)
    else:
        terms[:num_classes] = 0.0
    return terms


def write_squared_lengths(table: torch.Tensor, out: torch.Tensor) -> None:
    """out[r] = |table[r]|² for a contiguous (R, D) table; `out` is fp32 and may be longer."""
    from . import loss_kernels as kernels

    block = 128
    grid = (-(-table.shape[0] // block),)
    if table.shape[0]:
        padded = max(16, 1 << (table.shape[1] - 1).bit_length())
        kernels.squared_lengths[grid](
            table, out, table.shape[0], DIM=table.shape[1], PADDED_DIM=padded, BLOCK=block
        )


@contextmanager
def on_device_of(tensor: torch.Tensor) -> Iterator[None]:
    """Triton launches on the current device, whatever its arguments: make it theirs."""
    if tensor.is_cuda:
        with torch.cuda.device(tensor.device):
            yield
    else:
        yield


def fused_kernels(pixel_embeddings: Tensor, class_embeddings: Tensor) -> ModuleType | None:
    """Return the package `fused` where its kernels can take these tensors, else None.

    They need CUDA, triton and 4 to 256 channels, and accumulate in float32, so float64 stays in torch.
    """
    if not pixel_embeddings.is_cuda or not 4 <= pixel_embeddings.shape[1] <= 256:
        return None
    if compute_dtype(pixel_embeddings, class_embeddings) == torch.float64:
        return None
    if not TRITON_INSTALLED:
        return None
    from .. import fused

    return fused


def to_kernel_dtype(tensor: Tensor) -> Tensor:
    """Return the tensor as the kernels read it: float16 as float32, everything else unchanged."""
    return tensor.float() if tensor.dtype == torch.float16 else tensor
