"""Search the nearest classes with GPU kernels, without a buffer of scores."""

from __future__ import annotations

import torch
from torch import Tensor

from ..embeddings import check_search_bias, check_similarity
from .launch import Tile, class_terms, kernel_constants, on_device_of, require, small_tile

MAX_NEAREST = 64
"""Longest list that still fits a program's registers; `models.nearest` has no such limit."""

# By padded D; see FORWARD_TILES in models.fused.loss_pass for how they were chosen.
SEARCH_TILES = {
    16: Tile(64, 64, 4, 2),
    32: Tile(64, 64, 4, 2),
    64: Tile(64, 64, 4, 2),
    128: Tile(64, 32, 8, 2),
    256: Tile(64, 16, 8, 2),
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
    tile = small_tile(constants, pixels.device) or SEARCH_TILES[constants["PADDED_DIM"]]
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
