"""Decide whether the kernels apply to two tensors, and prepare what every launch needs.

Imports cleanly where Triton is not installed (macOS, CPU-only builds); the functions then raise with the
reason.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

TRITON_INSTALLED = find_spec("triton") is not None
SMALLEST_DIM = 4
LARGEST_DIM = 512
LARGEST_MIXED_DIM = 64
"""Above, classes beside pixels in bf16 are rounded to bf16: three times fewer matrix products of fp32."""
LARGEST_TILE = 256
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Tile:
    """Size of one program: pixels, classes, warps, loads in flight.

    The rows that a program keeps (pixels, or classes in `class_backward`) are fewer than 64, or its warps no
    multiple of 4. Triton then multiplies by `mma.sync` on every GPU. Larger ones make it `wgmma` on an H100
    or H200, which ptxas before 13.3 miscompiles: it overwrites registers that are still read (CUDA 13.3's
    release notes; Triton up to 3.9 has ptxas 12). On an H200 the gradients were garbage and addresses out of
    range. What it would gain there: nothing up to D = 16.
    """

    pixels: int
    classes: int
    warps: int
    stages: int

    def options(self) -> dict[str, Any]:
        """Return Triton's launch options, with fused multiply-adds: from 3.10 on not its default."""
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}


LARGE_SHARED_MEMORY = 200 * 1024
SMALL_TILES = {128: Tile(32, 32, 4, 1), 256: Tile(16, 16, 4, 1), 512: Tile(16, 16, 4, 1)}
"""By padded D, for rows that are not all bf16 on a GPU with less shared memory than that: those of an A100
(163 KiB) and of consumer cards (99 KiB). By ptxas for sm_80 and sm_89: fits, and spills least."""


def shared_memory(device: torch.device) -> int:
    """Return the bytes of shared memory that one program can have; in the interpreter as on an H100."""
    if device.type != "cuda":
        return LARGE_SHARED_MEMORY
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin


def small_tile(constants: dict[str, Any], device: torch.device) -> Tile | None:
    """Return the tile for a device whose shared memory is too small for the usual one, else None.

    Args:
        constants: from `kernel_constants`.
        device: to launch on.
    """
    if constants["ROW_PARTS"] == 1 or shared_memory(device) >= LARGE_SHARED_MEMORY:
        return None
    return SMALL_TILES.get(constants["PADDED_DIM"])


def supports(pixel_embeddings: Tensor, class_embeddings: Tensor) -> bool:
    """Tell whether the kernels apply to these two tensors: the one rule for choosing them.

    They apply where Triton is installed, D is 4..512, both are fp32, bf16 or fp16 (the kernels accumulate in
    fp32, so float64 stays in torch), and both lie on one CUDA device. While TRITON_INTERPRET=1 is set they
    may lie anywhere: for tests only, Triton's interpreter is thousands of times slower.
    """
    return _reason_against(pixel_embeddings, class_embeddings) is None


def require(pixel_embeddings: Tensor, class_embeddings: Tensor) -> None:
    """Raise where `supports` says no: RuntimeError for the machine, ValueError for the call."""
    if class_embeddings.dim() != 2 or class_embeddings.shape[0] < 1:
        raise ValueError(
            f"class_embeddings has shape {tuple(class_embeddings.shape)}; allowed: (C, D) with C >= 1"
        )
    reason = _reason_against(pixel_embeddings, class_embeddings)
    if reason is not None:
        raise reason


def _reason_against(pixel_embeddings: Tensor, class_embeddings: Tensor) -> Exception | None:
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


def to_kernel_dtypes(pixel_embeddings: Tensor, class_embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in the dtypes that losses and search pass to the kernels: float16 as float32.

    Beside pixels in bf16, classes of more than 64 numbers are rounded to bf16, as torch's autocast rounds the
    weight of a linear layer or convolution: 5 to 7 times faster at D = 256 (H200, docs/LOG.md). Shorter ones
    keep their precision.
    """
    pixels, classes = (
        tensor.float() if tensor.dtype == torch.float16 else tensor
        for tensor in (pixel_embeddings, class_embeddings)
    )
    if pixels.dtype == torch.bfloat16 and classes.shape[-1] > LARGEST_MIXED_DIM:
        classes = classes.to(torch.bfloat16)
    return pixels, classes


def kernel_constants(pixel_dtype: torch.dtype, class_dtype: torch.dtype, dim: int) -> dict[str, Any]:
    """Return the kernels' compile-time constants: D and the precision of the two matrix products.

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
    # The interpreter multiplies bf16 wrongly: give it the same rounded numbers as fp32.
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


def class_terms(
    class_embeddings: Tensor, similarity: str, absent: float, bias: Tensor | None = None
) -> Tensor:
    """Compute |w|² ("distance") or minus the bias (inner products) per class, padded to whole tiles.

    Args:
        class_embeddings: (C, D).
        similarity: "distance", "dot" or "cosine".
        absent: term of the padding, which keeps classes that do not exist away.
        bias: (C,), what is added to inner products; None for nothing.

    Returns:
        (C or more,) fp32.
    """
    num_classes = class_embeddings.shape[0]
    padded = -(-num_classes // LARGEST_TILE) * LARGEST_TILE
    terms = torch.full((padded,), absent, dtype=torch.float32, device=class_embeddings.device)
    if similarity == "distance":
        write_squared_lengths(class_embeddings, terms)
    else:
        terms[:num_classes] = 0.0 if bias is None else -bias.float()
    return terms


def write_squared_lengths(table: Tensor, out: Tensor) -> None:
    """Write out[r] = |table[r]|² for a contiguous (R, D) table; `out` is fp32 and may be longer."""
    from . import loss_kernels as kernels

    block = 128
    grid = (-(-table.shape[0] // block),)
    if table.shape[0]:
        padded = max(16, 1 << (table.shape[1] - 1).bit_length())
        kernels.squared_lengths[grid](
            table, out, table.shape[0], DIM=table.shape[1], PADDED_DIM=padded, BLOCK=block
        )


@contextmanager
def on_device_of(tensor: Tensor) -> Iterator[None]:
    """Make the tensor's device the current one, on which Triton launches whatever its arguments."""
    if tensor.is_cuda:
        with torch.cuda.device(tensor.device):
            yield
    else:
        yield
