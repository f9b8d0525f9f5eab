"""Search the nearest classes with GPU kernels, without a buffer of scores."""

from __future__ import annotations

import torch
from torch import Tensor

from ..embeddings import WORK_BYTES, check_search_bias, check_similarity
from .launch import Tile, class_terms, kernel_constants, on_device_of, require, small_tile
from .upsample import rows_per_band, upsample_rows

MAX_NEAREST = 64
"""Longest list that still fits a program's registers; `models.nearest` has no such limit."""

# By padded D; chosen as FORWARD_TILES in models.fused.loss_pass. Lists were timed up to D = 64 only.
NEAREST_TILES = {
    16: Tile(64, 16, 2, 2),
    32: Tile(64, 16, 2, 2),
    64: Tile(64, 16, 2, 2),
    128: Tile(64, 16, 2, 2),
    256: Tile(16, 32, 4, 2),
    512: Tile(16, 16, 4, 1),
}
LIST_TILES = {
    16: Tile(16, 32, 1, 2),
    32: Tile(16, 32, 1, 2),
    64: Tile(32, 32, 1, 2),
    128: Tile(32, 16, 2, 2),
    256: Tile(16, 32, 4, 2),
    512: Tile(16, 16, 4, 1),
}


@torch.no_grad()
def fused_nearest_classes(
    pixel_embeddings: Tensor,
    class_embeddings: Tensor,
    k: int,
    *,
    similarity: str = "distance",
    bias: Tensor | None = None,
) -> Tensor:
    """Find the k classes nearest to each pixel, nearest first, the lower id first among equals.

    Args:
        pixel_embeddings: (P, D), D of 4..512, fp32, bf16 or fp16.
        class_embeddings: (C, D).
        k: how many, 1..min(C, `MAX_NEAREST`).
        similarity: "distance" (least |e - w|), "dot" or "cosine" (largest e·w).
        bias: (C,), added to inner products.

    Returns:
        (P, k) int64, without gradient.

    Raises:
        ValueError: a shape, dtype, k or option outside the above.
        RuntimeError: no Triton, or tensors not on a CUDA device.
    """
    check_similarity(similarity)
    check_search_bias(similarity, bias)
    require(pixel_embeddings, class_embeddings)
    num_classes, dim = class_embeddings.shape
    if pixel_embeddings.dim() != 2 or pixel_embeddings.shape[1] != dim:
        raise ValueError(f"pixel_embeddings has shape {tuple(pixel_embeddings.shape)}; allowed: (P, {dim})")
    if not 1 <= k <= min(num_classes, MAX_NEAREST):
        raise ValueError(
            f"k is {k}; allowed here: 1..{min(num_classes, MAX_NEAREST)} "
            f"(C is {num_classes}; models.nearest.nearest_classes has no limit but C)"
        )
    from . import search_kernels as kernels

    pixels, classes = pixel_embeddings.contiguous(), class_embeddings.contiguous()
    found = torch.empty(len(pixels), k, dtype=torch.int64, device=pixels.device)
    if len(pixels) == 0:
        return found
    constants = kernel_constants(pixels.dtype, classes.dtype, dim)
    tile = small_tile(constants, pixels.device)
    tile = tile or (NEAREST_TILES if k == 1 else LIST_TILES)[constants["PADDED_DIM"]]
    for name in ("FACTOR_PARTS", "ROW_PARTS", "PART"):
        del constants[name]
    grid = (-(-len(pixels) // tile.pixels),)
    constants |= {"BLOCK_P": tile.pixels, "BLOCK_C": tile.classes, **tile.options()}
    factor = 2.0 if similarity == "distance" else 1.0
    with on_device_of(pixels):
        terms = class_terms(classes, similarity, float("inf"), bias)
        if k == 1:
            kernels.nearest_one[grid](
                pixels, classes, terms, found, len(pixels), num_classes, factor, **constants
            )
        else:
            slots = max(2, 1 << (k - 1).bit_length())
            kernels.nearest_many[grid](
                pixels, classes, terms, found, len(pixels), num_classes, k, factor, SLOTS=slots, **constants
            )
    return found


@torch.no_grad()
def fused_classes_of_map(
    image: Tensor,
    class_embeddings: Tensor,
    size: tuple[int, int],
    *,
    similarity: str = "distance",
    bias: Tensor | None = None,
    work_bytes: int = WORK_BYTES,
) -> Tensor:
    """Find the nearest class of each pixel of a map that is upsampled bilinearly, a band of rows at a time.

    Args:
        image: (D, h, w), D of 4..512, fp32, bf16 or fp16; a band is interpolated into the same dtype.
        class_embeddings: (C, D).
        size: (H, W).
        similarity: "distance", "dot" or "cosine".
        bias: (C,), added to inner products.
        work_bytes: bounds the band; at least one row of W pixels is taken.

    Returns:
        (H, W) int64.

    Raises:
        ValueError, RuntimeError: as `fused_nearest_classes`.
    """
    maps = image[None].permute(0, 2, 3, 1).contiguous()
    (height, width), dim = size, len(image)
    band_rows = rows_per_band(width, height, dim, maps.element_size(), work_bytes, with_gradient=False)
    band = torch.empty(band_rows * width, dim, dtype=maps.dtype, device=maps.device)
    found = torch.empty(height * width, dtype=torch.int64, device=maps.device)
    for first in range(0, height, band_rows):
        part = slice(first * width, min(first + band_rows, height) * width)
        pixels = band[: part.stop - part.start]
        with on_device_of(pixels):
            upsample_rows(maps, pixels, first, size)
        nearest = fused_nearest_classes(pixels, class_embeddings, 1, similarity=similarity, bias=bias)
        found[part] = nearest[:, 0]
    return found.view(size)
