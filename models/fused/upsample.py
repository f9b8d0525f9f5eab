"""Folds bilinear upsampling into the fused loss, one band of full-resolution rows at a time.

A band is interpolated into a bounded buffer, handled like any other chunk of pixels, and its pixel gradient
gathered back by the transpose of the interpolation. The loss kernels run unchanged and the exponentials stay
at 2·P·C. The two alternatives inside the loss kernels are worse: a program that owns low-resolution pixels
reaches four times its share of full-resolution ones and would repeat their exponentials; a program that owns
full-resolution pixels would scatter with atomics, whose order, and so whose result, changes from run to run.
"""

import torch

from .loss_pass import LossPass, Measured, Plan

MOST_BAND_PIXELS = 2**22


def measure_maps(
    pixel_embeddings: torch.Tensor,
    class_embeddings: torch.Tensor,
    target: torch.Tensor,
    plan: Plan,
    with_pixels: bool,
    with_classes: bool,
) -> Measured:
    """The loss of (N, D, h, w) embeddings at the target's (N, H, W); pixel gradient (N, h, w, D), fp32."""
    maps = pixel_embeddings.permute(0, 2, 3, 1).contiguous()
    dim = maps.shape[3]
    images, full_height, full_width = target.shape
    gradient = torch.zeros(maps.shape, dtype=torch.float32, device=maps.device) if with_pixels else None
    rows = images * full_height if maps.numel() else 0
    band_rows = rows_per_band(full_width, rows, dim, maps.element_size(), plan.work_bytes, with_pixels)
    band_pixels = band_rows * full_width
    band = torch.empty(band_pixels, dim, dtype=maps.dtype, device=maps.device)
    band_gradient = (
        torch.empty(band_pixels, dim, dtype=torch.float32, device=maps.device) if with_pixels else None
    )
    loss_pass = LossPass(class_embeddings, maps.dtype, plan, band_pixels, with_classes)
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
    """Full-resolution rows in one band: within three quarters of the work buffer, at least one."""
    pixel_bytes = dim * (element_size + 4 * with_gradient) + 12
    most = min(work_bytes * 3 // 4 // pixel_bytes, MOST_BAND_PIXELS) // max(1, full_width)
    return max(1, min(most, rows))


def upsample_rows(maps: torch.Tensor, band: torch.Tensor, first_row: int, full_size: tuple[int, int]) -> None:
    """Writes the (B, D) full-resolution pixels from row `first_row` on, rows counted through all images."""
    from . import upsample_kernels as kernels

    _, height, width, dim = maps.shape
    block = 64
    kernels.upsample_band[(-(-len(band) // block),)](
        maps, band, first_row, len(band), height, width, *full_size,
        height / full_size[0], width / full_size[1],
        DIM=dim, PADDED_DIM=1 << (dim - 1).bit_length(), BLOCK=block, enable_fp_fusion=True,
    )  # fmt: skip


def add_rows_gradient(
    band_gradient: torch.Tensor,
    map_gradient: torch.Tensor,
    first_row: int,
    end_row: int,
    full_size: tuple[int, int],
) -> None:
    """Adds the transpose of `upsample_rows`, for full-resolution rows up to `end_row`, to (N, h, w, D)."""
    from . import upsample_kernels as kernels

    images, height, width, dim = map_gradient.shape
    row_ratio, column_ratio = height / full_size[0], width / full_size[1]

    def cell_row(row: int) -> int:
        image, y = divmod(row, full_size[0])
        return image * height + max(0, int((y + 0.5) * row_ratio - 0.5))

    # One more on either side, in case fp32 in the kernel rounds across an integer where float64 here does
    # not.
    first_cell = max(0, cell_row(first_row) - 1)
    end_cell = min(images * height, cell_row(end_row - 1) + 3)
    block = 32
    kernels.add_band_gradient[(end_cell - first_cell, -(-width // block))](
        band_gradient, map_gradient, first_row, end_row, first_cell, height, width, *full_size,
        row_ratio, column_ratio, int(2 / column_ratio) + 4,
        DIM=dim, PADDED_DIM=1 << (dim - 1).bit_length(), BLOCK=block, enable_fp_fusion=True,
    )  # fmt: skip
