"""Cross-entropy over all classes, formed with both gradients tile by tile: an autograd function of its own.

The softmax of one tile of pixels x classes is turned into its share of the loss and of the gradients, and
overwritten by the next tile. The gradients are ready when the loss is; backward only scales them.

A tile spans all classes where at least a few pixels of them fit the work buffer. Beyond that (a hundred
thousand classes) it spans some, and each tile is formed twice: for the normaliser, then for the gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from models.nearest import compute_dtype, full_precision
from models.tiles import CosineTiles, DistanceTiles, PixelChunk

# A tile is an eighth of the buffer. Of distances two are held, and what needs refining may take five more for
# a moment. With fewer pixels in a tile of all classes than these, moving the class gradient costs the most.
_FEWEST_ROWS, _ENOUGH_ROWS = 8, 16
_BLOCK_ROWS = 512  # pixels in a tile of some classes
_CHUNK_ROWS = 1024  # pixels prepared together for tiles of all classes


class ExactCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of the labelled pixels over all classes; `models.losses` has the public function."""

    @staticmethod
    def forward(
        ctx: Any,
        pixel_embeddings: Tensor,
        class_embeddings: Tensor,
        target: Tensor,
        class_offsets: Tensor | None,
        temperature: float,
        similarity: str,
        ignore_index: int,
        work_bytes: int,
        with_gradients: bool,
    ) -> Tensor:
        """Return the scalar loss and keep both gradients.

        Args:
            ctx: what autograd hands to `backward`.
            pixel_embeddings: (P, D).
            class_embeddings: (C, D).
            target: (P,) int64, 0..C-1 or `ignore_index`.
            class_offsets: (C,) added to the logits, zero for every class that is somebody's target; or None.
            temperature: divides the similarities.
            similarity: "distance" or "cosine".
            ignore_index: target of the pixels left out.
            work_bytes: size of the work buffer.
            with_gradients: False where nothing will be differentiated.
        """
        need_pixel, need_class = (with_gradients and need for need in ctx.needs_input_grad[:2])
        classes = class_embeddings.to(compute_dtype(pixel_embeddings, class_embeddings))
        rows = labelled_rows(target, ignore_index)
        count = len(target) if rows is None else len(rows)
        tile_rows, chunk_rows, columns = _tile_shape(count, classes, work_bytes, similarity)
        make_tiles = DistanceTiles if similarity == "distance" else CosineTiles
        pixel_gradient = torch.zeros_like(pixel_embeddings) if need_pixel else None
        total = classes.new_zeros((), dtype=torch.float64)
        with full_precision(pixel_embeddings):
            tiles = make_tiles(classes, class_offsets, temperature, tile_rows * columns, need_class)
            for chosen in row_chunks(rows, count, chunk_rows):
                chunk = tiles.chunk(pixel_embeddings[chosen].to(classes.dtype), target[chosen])
                if isinstance(tiles, CosineTiles) and columns == len(classes):
                    losses, gradient = tiles.add_whole(chunk, tile_rows, 1 / count, need_pixel)
                else:
                    losses, gradient = _pixel_chunk(tiles, chunk, columns, 1 / count, need_pixel)
                total += losses.sum(dtype=torch.float64)
                if pixel_gradient is not None and gradient is not None:
                    pixel_gradient[chosen] = gradient.div_(temperature).to(pixel_gradient.dtype)
            class_gradient = tiles.class_gradient().to(class_embeddings.dtype) if need_class else None
        ctx.save_for_backward(pixel_gradient, class_gradient)
        return (total / max(count, 1)).to(classes.dtype)

    @staticmethod
    def backward(ctx: Any, loss_gradient: Tensor) -> Any:
        """Scale the gradients that the forward pass left."""
        return *scaled_gradients(ctx, loss_gradient), None, None, None, None, None, None, None


def scaled_gradients(ctx: Any, loss_gradient: Tensor) -> list[Tensor | None]:
    """Return the saved gradients times that of the loss, and leave the saved ones as they are."""
    with torch.no_grad():
        gradients = [
            None if gradient is None else gradient * loss_gradient.to(gradient.dtype)
            for gradient in ctx.saved_tensors
        ]
    if not torch.is_grad_enabled():  # it is with create_graph=True
        return gradients
    return [
        None if gradient is None else _FirstDerivativeOnly.apply(gradient.requires_grad_())
        for gradient in gradients
    ]


class _FirstDerivativeOnly(torch.autograd.Function):
    """Pass a gradient on, and refuse to differentiate it instead of leaving its derivative out unnoticed.

    (`once_differentiable` refuses only where the gradient that came in needs one itself, which that of a loss
    does not.)
    """

    @staticmethod
    def forward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError(
            "this loss keeps its gradients from the forward pass and can be differentiated only once; for "
            "second derivatives use torch.nn.functional.cross_entropy on full logits"
        )


def labelled_rows(target: Tensor, ignore_index: int) -> Tensor | None:
    """Return the indices of the labelled pixels, or None where all are labelled."""
    labelled = target != ignore_index
    return None if bool(labelled.all()) else labelled.nonzero()[:, 0]


def row_chunks(rows: Tensor | None, count: int, size: int) -> Iterator[slice | Tensor]:
    """Yield what selects `count` rows, `size` at a time: slices, or pieces of `rows`."""
    for first in range(0, count, size):
        last = min(first + size, count)
        yield slice(first, last) if rows is None else rows[first:last]


def _tile_shape(num_pixels: int, classes: Tensor, work_bytes: int, similarity: str) -> tuple[int, int, int]:
    """Return the pixels of a tile, those that are prepared together, and the classes of a tile."""
    num_classes, dim = classes.shape
    most_elements = max(1, work_bytes // 8 // classes.element_size())
    if similarity == "cosine":  # one tile, and refines nothing: it may grow where it would be flat
        most_elements = min(6 * most_elements, max(most_elements, _ENOUGH_ROWS * num_classes))
    most_rows = max(1, min(num_pixels, most_elements // (4 * (dim + 2))))  # a chunk takes about 6 D a pixel
    rows, columns = min(most_rows, most_elements // num_classes), num_classes
    if rows < min(most_rows, _FEWEST_ROWS):
        rows = min(most_rows, _BLOCK_ROWS)
        columns = min(num_classes, max(1, most_elements // rows))
    whole = similarity == "cosine" and columns == num_classes
    return rows, max(rows, min(most_rows, _CHUNK_ROWS)) if whole else rows, columns


def _pixel_chunk(
    tiles: DistanceTiles | CosineTiles,
    chunk: PixelChunk,
    columns: int,
    weight: float,
    need_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """Compare p pixels with all classes, `columns` at a time.

    Returns:
        Their (p,) losses and the (p, D) gradient of the loss for e' times `weight`, or None where not needed.
        The gradient of the classes is added to `tiles.sums`.
    """
    num_classes = len(tiles.keys)
    blocks = [(start, min(start + columns, num_classes)) for start in range(0, num_classes, columns)]
    logits, shares, normalisers = tiles.softmax(chunk, *blocks[0])
    for block in blocks[1:]:
        normalisers = torch.logaddexp(normalisers, tiles.softmax(chunk, *block)[2])
    losses = (normalisers - chunk.target_logits).clamp_min_(0)  # less than zero only by rounding
    if not need_gradient and tiles.sums is None:
        return losses, None

    gradient = torch.zeros_like(chunk.scaled) if need_gradient else None
    scale = torch.full_like(normalisers, weight)[:, None]
    missing = -weight * torch.expm1(-losses)[:, None]
    for block in blocks:
        if len(blocks) > 1:
            logits, shares, of_tile = tiles.softmax(chunk, *block)
            scale = weight * (of_tile - normalisers).exp_().clamp_min_(1e-30)[:, None]
        tiles.add_gradients(logits, shares, chunk, *block, scale, missing, gradient)
    return losses, gradient
