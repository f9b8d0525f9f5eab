"""Compute the fused loss of maps: upsample one band of full-resolution rows at a time.

A band is interpolated into a bounded buffer, handled like any other chunk of pixels, and its pixel gradient
brought back by the transpose of the interpolation. The loss kernels run unchanged, with 2·P·C exponentials.

Interpolating inside the loss kernels would be worse. A program that owns low-resolution pixels reaches four
times as many full-resolution ones as it owns and would repeat their exponentials. One that owns
full-resolution pixels would scatter with atomics, whose order, and so the result, changes from run to run.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..embeddings import LossOptions
from ..gradients import Needed
from .loss_pass import LossAndGrads, LossPass

MAX_BAND_PIXELS = 2**22


def loss_and_grads_of_maps(
    pixel_embeddings: Tensor,
    class_embeddings: Tensor,
    target: Tensor,
    options: LossOptions,
    needed: Needed,
    bias: Tensor | None,
) -> LossAndGrads:
    """Compute the loss of (N, D, h, w) at the target's (N, H, W); the pixel gradient is (N, h, w, D) fp32."""
    maps = pixel_embeddings.permute(0, 2, 3, 1).contiguous()
    dim = maps.shape[3]
    images, full_height, full_width = target.shape
    gradient = torch.zeros(maps.shape, dtype=torch.float32, device=maps.device) if needed.pixels else None
    rows = images * full_height if maps.numel() else 0
    band_rows = rows_per_band(full_width, rows, dim, maps.element_size(), options.work_bytes, needed.pixels)
    band_pixels = band_rows * full_width
    band = torch.empty(band_pixels, dim, dtype=maps.dtype, device=maps.device)
    band_gradient = (
        torch.empty(band_pixels, dim, dtype=torch.float32, device=maps.device) if needed.pixels else None
    )
    loss_pass = LossPass(class_embeddings, maps.dtype, options, band_pixels, needed, bias)
    flat_target = target.reshape(rows, full_width)
    for first in range(0, rows, band_rows):
        end = min(first + band_rows, rows)
        pixels = (end - first) * full_width
        upsample_rows(maps, band[:pixels], first, (full_height, full_width))
        part = None if band_gradient is None else band_gradient[:pixels]
        loss_pass.add(band[:pixels], flat_target[first:end].reshape(-1), part)
        if gradient is not None and part is not None:
            add_rows_gradient(part, gradient, first, end, (full_height, full_width))
    return loss_pass.finish(gradient)


def rows_per_band(
    full_width: int, rows: int, dim: int, element_size: int, work_bytes: int, with_gradient: bool
) -> int:
    """Count the full-resolution rows of one band: within 3/4 of the work buffer, at least one."""
    pixel_bytes = dim * (element_size + 4 * with_gradient) + 12
    max_rows = min(work_bytes * 3 // 4 // pixel_bytes, MAX_BAND_PIXELS) // max(1, full_width)
    return max(1, min(max_rows, rows))


def upsample_rows(maps: Tensor, band: Tensor, first_row: int, full_size: tuple[int, int]) -> None:
    """Write the (B, D) full-resolution pixels from row `first_row` on, rows counted through all images."""
    from . import upsample_kernels as kernels

    _, height, width, dim = maps.shape
    padded = 1 << (dim - 1).bit_length()
    block = min(64, max(8, 4096 // padded))  # pixels of a program, whose rows stay in registers
    kernels.upsample_band[(-(-len(band) // block),)](
        maps, band, first_row, len(band), height, width, *full_size,
        height / full_size[0], width / full_size[1],
        DIM=dim, PADDED_DIM=padded, BLOCK=block, enable_fp_fusion=True,
    )  # fmt: skip


def add_rows_gradient(
    band_gradient: Tensor,
    map_gradient: Tensor,
    first_row: int,
    end_row: int,
    full_size: tuple[int, int],
) -> None:
    """Add the transpose of `upsample_rows`, for full-resolution rows up to `end_row`, to (N, h, w, D)."""
    from . import upsample_kernels as kernels

    images, height, width, dim = map_gradient.shape
    row_ratio, column_ratio = height / full_size[0], width / full_size[1]

    def cell_row(row: int) -> int:
        image, y = divmod(row, full_size[0])
        return image * height + max(0, int((y + 0.5) * row_ratio - 0.5))

    # One more on either side: fp32 in the kernel may round across an integer where float64 here does not.
    first_cell = max(0, cell_row(first_row) - 1)
    end_cell = min(images * height, cell_row(end_row - 1) + 3)
    padded = 1 << (dim - 1).bit_length()
    block = min(32, max(8, 4096 // padded))
    kernels.add_band_gradient[(end_cell - first_cell, -(-width // block))](
        band_gradient, map_gradient, first_row, end_row, first_cell, height, width, *full_size,
        row_ratio, column_ratio, int(2 / column_ratio) + 4,
        DIM=dim, PADDED_DIM=padded, BLOCK=block, enable_fp_fusion=True,
    )  # fmt: skip
