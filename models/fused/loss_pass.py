"""Run the loss kernels over chunks of pixels and collect the loss and both gradients."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..embeddings import LossOptions
from ..gradients import Needed
from .launch import Tile, class_terms, kernel_constants, small_tile, write_squared_lengths

LOG2_E = 1.4426950408889634
FAR_AWAY = 1e30
"""Squared length of a class that does not exist: its exponential is 0, its reciprocal root above 0."""
CHUNK_PIXELS = 2**19
"""Fills a large GPU several times over, and its embeddings at D = 16 still fit the second-level cache."""
CLASS_PROGRAMS = 1024
"""Wanted class tiles times pixel slices; a constant, so that results do not depend on the GPU's size."""
SLICE_PIXELS = 512
"""Fewest pixels of a slice; below, writing its partial gradient costs more than it saves."""

# By padded D, and by whether all rows are bf16. For 16, 64, 128 and 256 among the fastest on an H200, by
# benchmarks/results/tiles-cuda-2026-11-26.txt; 32 and 512 were not timed and are like their neighbors.
FORWARD_TILES = {
    (16, True): Tile(32, 64, 2, 2),
    (32, True): Tile(64, 32, 2, 2),
    (64, True): Tile(64, 32, 2, 2),
    (128, True): Tile(64, 32, 2, 2),
    (256, True): Tile(32, 64, 4, 2),
    (512, True): Tile(16, 32, 4, 1),
    (16, False): Tile(32, 32, 1, 2),
    (32, False): Tile(32, 32, 2, 2),
    (64, False): Tile(64, 16, 2, 2),
    (128, False): Tile(32, 32, 4, 2),
    (256, False): Tile(32, 32, 4, 2),
    (512, False): Tile(16, 16, 4, 1),
}
# Of the class gradient, where a program keeps classes and loops over pixels.
CLASS_TILES = {
    (16, True): Tile(64, 32, 2, 2),
    (32, True): Tile(64, 32, 2, 2),
    (64, True): Tile(32, 32, 1, 2),
    (128, True): Tile(32, 32, 2, 3),
    (256, True): Tile(64, 16, 2, 2),
    (512, True): Tile(32, 16, 4, 1),
    (16, False): Tile(32, 64, 1, 2),
    (32, False): Tile(32, 32, 2, 2),
    (64, False): Tile(64, 32, 2, 2),
    (128, False): Tile(64, 32, 4, 2),
    (256, False): Tile(16, 16, 2, 2),
    (512, False): Tile(16, 16, 4, 1),
}


@dataclass
class LossAndGrads:
    """Hold the result of a forward pass: the mean loss, and the gradients of the *summed* loss."""

    loss: Tensor  # fp32 scalar
    labeled: Tensor  # number of labeled pixels, at least 1
    pixel_gradient: Tensor | None  # (P, D) in the pixels' dtype, or (N, h, w, D) fp32
    class_gradient: Tensor | None  # (C, D) fp32
    bias_gradient: Tensor | None  # (C,) fp32

    @property
    def gradients(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return those of the pixels, the classes and the bias."""
        return self.pixel_gradient, self.class_gradient, self.bias_gradient


def scale_in_place(gradients: Iterable[Tensor | None], loss_gradient: Tensor, labeled: Tensor) -> None:
    """Multiply contiguous gradients of a summed loss by loss_gradient / labeled, in fp32."""
    from . import loss_kernels as kernels

    factor = (loss_gradient.double() / labeled).float().reshape(1)
    block = 2048
    for gradient in gradients:
        if gradient is not None and gradient.numel():
            grid = (-(-gradient.numel() // block),)
            kernels.scale_in_place[grid](gradient, factor, gradient.numel(), BLOCK=block)


class LossPass:
    """Run one forward pass: `add` the chunks in turn, then `finish`.

    Args:
        class_embeddings: (C, D), contiguous.
        pixel_dtype: dtype of the chunks to come.
        options: of the loss.
        chunk_pixels: most pixels that one chunk has.
        needed: which gradients are wanted.
        bias: (C,), added to logits of inner products; None for nothing.
    """

    def __init__(
        self,
        class_embeddings: Tensor,
        pixel_dtype: torch.dtype,
        options: LossOptions,
        chunk_pixels: int,
        needed: Needed,
        bias: Tensor | None,
    ) -> None:
        device = class_embeddings.device
        num_classes, dim = class_embeddings.shape
        self.constants = kernel_constants(pixel_dtype, class_embeddings.dtype, dim)
        self.constants["DISTANCE"] = options.similarity == "distance"
        key = self.constants["PADDED_DIM"], self.constants["ROW_PARTS"] == 1
        small = small_tile(self.constants, device)
        self.forward_tile = small or FORWARD_TILES[key]
        self.class_tile = small or CLASS_TILES[key]
        self.classes = class_embeddings
        scaled_bias = None if bias is None else bias.float() * options.temperature
        self.terms = class_terms(class_embeddings, options.similarity, FAR_AWAY, scaled_bias)
        self.ignore_index = options.ignore_index
        self.scale = LOG2_E / options.temperature
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self.labeled = torch.zeros((), dtype=torch.int64, device=device)
        # Of the current chunk: pixel terms, log sums, target weights; each row aligned for wide loads.
        self.sums = torch.empty(3, -(-chunk_pixels // 64) * 64, dtype=torch.float32, device=device)
        self.partial_gradients: Tensor | None = None
        self.partial_bias_gradients: Tensor | None = None
        self.needed = needed
        if needed.classes or needed.bias:
            slices = number_of_slices(num_classes, dim, chunk_pixels, options.work_bytes, self.class_tile)
            self.partial_gradients = torch.zeros(slices, num_classes, dim, dtype=torch.float32, device=device)
            if needed.bias:
                self.partial_bias_gradients = torch.zeros_like(self.partial_gradients[:, :, 0])

    def add(self, pixels: Tensor, target: Tensor, gradient: Tensor | None) -> None:
        """Add a chunk to the loss and the class gradient, and write its pixel gradient.

        Args:
            pixels: (B, D), contiguous.
            target: (B,), contiguous.
            gradient: (B, D) to be overwritten with the gradient of the summed loss, or None where none is
                wanted.
        """
        from . import loss_kernels as kernels

        num_pixels, num_classes, tile = len(pixels), len(self.classes), self.forward_tile
        pixel_terms, log_sums, target_weights = self.sums
        if self.constants["DISTANCE"]:
            write_squared_lengths(pixels, pixel_terms)
        tiles = -(-num_pixels // tile.pixels)
        losses = torch.empty(tiles, dtype=torch.float32, device=pixels.device)
        counts = torch.empty(tiles, dtype=torch.int32, device=pixels.device)
        kernels.loss_forward[(tiles,)](
            pixels, pixel_terms, self.classes, self.terms, target, losses, counts, log_sums, target_weights,
            pixels if gradient is None else gradient,
            num_pixels, num_classes, self.scale, self.ignore_index,
            BLOCK_P=tile.pixels, BLOCK_C=tile.classes, WITH_PIXEL_GRADIENT=gradient is not None,
            WITH_CLASS_GRADIENT=self.partial_gradients is not None, **self.constants, **tile.options(),
        )  # fmt: skip
        self.loss += losses.sum(dtype=torch.float64)
        self.labeled += counts.sum()
        if self.partial_gradients is not None:
            tile = self.class_tile
            slices = len(self.partial_gradients)
            pixels_per_slice = -(-num_pixels // (slices * tile.pixels)) * tile.pixels
            with_bias = self.partial_bias_gradients is not None
            of_bias = self.partial_bias_gradients if with_bias else self.partial_gradients
            kernels.class_backward[(-(-num_classes // tile.classes), slices)](
                pixels, pixel_terms, self.classes, self.terms, target, log_sums, target_weights,
                self.partial_gradients, of_bias,
                num_pixels, num_classes, pixels_per_slice, self.scale,
                BLOCK_P=tile.pixels, BLOCK_C=tile.classes,
                WITH_BIAS_GRADIENT=with_bias,
                **self.constants, **tile.options(),
            )  # fmt: skip

    def finish(self, pixel_gradient: Tensor | None) -> LossAndGrads:
        """Return the mean over all chunks; a finite zero where no pixel was labeled."""
        labeled = self.labeled.clamp(min=1)
        class_gradient = _sum_of_slices(self.partial_gradients) if self.needed.classes else None
        bias_gradient = _sum_of_slices(self.partial_bias_gradients)
        loss = (self.loss / labeled).float()
        return LossAndGrads(loss, labeled, pixel_gradient, class_gradient, bias_gradient)


def _sum_of_slices(partial: Tensor | None) -> Tensor | None:
    return None if partial is None else partial[0] if len(partial) == 1 else partial.sum(0)


def number_of_slices(num_classes: int, dim: int, chunk_pixels: int, work_bytes: int, tile: Tile) -> int:
    """Count pixel slices of the class gradient: enough programs, in a quarter of the work buffer, or 1."""
    wanted = -(-CLASS_PROGRAMS // -(-num_classes // tile.classes))
    affordable = work_bytes // 4 // (num_classes * dim * 4)
    return max(1, min(wanted, affordable, -(-chunk_pixels // SLICE_PIXELS)))


def loss_and_grads_of_rows(
    pixel_embeddings: Tensor,
    class_embeddings: Tensor,
    target: Tensor,
    options: LossOptions,
    needed: Needed,
    bias: Tensor | None,
) -> LossAndGrads:
    """Compute the loss of (P, D) embeddings; the pixel gradient has their shape and dtype."""
    rows = pixel_embeddings.contiguous()
    chunk = min(CHUNK_PIXELS, max(1, len(rows)))
    loss_pass = LossPass(class_embeddings, rows.dtype, options, chunk, needed, bias)
    gradient = torch.empty_like(rows) if needed.pixels else None
    for start in range(0, len(rows), chunk):
        part = slice(start, start + chunk)
        loss_pass.add(rows[part], target[part], None if gradient is None else gradient[part])
    return loss_pass.finish(gradient)
