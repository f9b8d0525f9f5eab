"""Cross-entropy over all classes, formed with both gradients tile by tile: an autograd function of its own.

The softmax of one tile of pixels x classes is turned into its share of the loss and of the gradients, and
overwritten by the next tile. The gradients are ready when the loss is; backward only scales them.

A tile spans all classes where at least a few pixels of them fit the work buffer. Beyond that (a hundred
thousand classes) it spans some, and each tile is formed twice: for the normalizer, then for the gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..embeddings import compute_dtype, full_precision
from .cosine_tiles import CosineTiles
from .distance_tiles import DistanceTiles
from .threads import for_each, num_workers, pieces_of
from .tiles import PixelChunk, Tiles

# Of distances two tiles are held, and for a moment half as much again: a tile is a quarter of the buffer. Of
# products one is held: it is an eighth, which caches like, but for very many classes up to three quarters.
# With fewer pixels in a tile of all classes than these, moving the class gradient costs the most.
_FEWEST_ROWS, _ENOUGH_ROWS = 8, 16
_BLOCK_ROWS = 512  # pixels in a tile of some classes
_CHUNK_ROWS = 2048  # pixels prepared together for tiles of all classes


class ExactCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of the labeled pixels over all classes; `models.losses.exact` has the public function."""

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
        rows = labeled_rows(target, ignore_index)
        count = len(target) if rows is None else len(rows)
        workers, size = share_out(count, classes, work_bytes, similarity)
        pixel_gradient = torch.zeros_like(pixel_embeddings) if need_pixel else None
        with full_precision(pixel_embeddings):
            first = make_tiles(classes, class_offsets, temperature, similarity, size, need_class)
            tiles = [first, *(first.another() for _ in range(workers - 1))]
            totals = classes.new_zeros(workers, dtype=torch.float64)

            def work(worker: int, chosen: slice | Tensor) -> None:
                own = tiles[worker]
                scaled = pixel_embeddings[chosen].to(classes.dtype) / temperature
                chunk = own.chunk(scaled, target[chosen])
                losses, gradient = compare(own, chunk, size, 1 / count, need_pixel)
                totals[worker] += losses.sum(dtype=torch.float64)
                if pixel_gradient is not None and gradient is not None:
                    pixel_gradient[chosen] = gradient.div_(temperature).to(pixel_gradient.dtype)

            for_each(list(row_chunks(rows, count, size.chunk_rows)), work, workers)
            class_gradient = summed_class_gradients(tiles).to(class_embeddings.dtype) if need_class else None
        ctx.save_for_backward(pixel_gradient, class_gradient)
        return (totals.sum() / max(count, 1)).to(classes.dtype)

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


def labeled_rows(target: Tensor, ignore_index: int) -> Tensor | None:
    """Return the indices of the labeled pixels, or None where all are labeled."""
    labeled = target != ignore_index
    return None if bool(labeled.all()) else labeled.nonzero()[:, 0]


def row_chunks(rows: Tensor | None, count: int, size: int) -> Iterator[slice | Tensor]:
    """Yield what selects `count` rows, `size` at a time: slices, or pieces of `rows`."""
    for first in range(0, count, size):
        last = min(first + size, count)
        yield slice(first, last) if rows is None else rows[first:last]


@dataclass(frozen=True)
class TileSize:
    """Pixels of a tile, pixels that are prepared together, and classes of a tile."""

    rows: int
    chunk_rows: int
    columns: int


def share_out(num_pixels: int, classes: Tensor, work_bytes: int, similarity: str) -> tuple[int, TileSize]:
    """Tell how many threads work, and on tiles of which size each, within one buffer for all."""
    pieces = pieces_of(num_pixels, len(classes))
    of_gradients = classes.nbytes * (classes.shape[1] + 1) // classes.shape[1]
    workers = num_workers(classes.device, pieces, work_bytes, of_gradients)
    size = _tile_size(-(-num_pixels // workers), classes, work_bytes // workers, similarity)
    return workers, size


def _tile_size(num_pixels: int, classes: Tensor, work_bytes: int, similarity: str) -> TileSize:
    num_classes, dim = classes.shape
    elements = work_bytes // 8 // classes.element_size()
    most_elements = max(1, 2 * elements)
    if similarity == "cosine":
        most_elements = max(1, min(6 * elements, max(elements, _ENOUGH_ROWS * num_classes)))
    most_rows = max(1, min(num_pixels, most_elements // (4 * (dim + 2))))  # a chunk takes about 6 D a pixel
    rows, columns = min(most_rows, most_elements // num_classes), num_classes
    if rows < min(most_rows, _FEWEST_ROWS):
        rows = min(most_rows, _BLOCK_ROWS)
        columns = min(num_classes, max(1, most_elements // rows))
    together = max(rows, min(most_rows // 4, _CHUNK_ROWS)) if columns == num_classes else rows
    return TileSize(rows, together, columns)


def make_tiles(
    classes: Tensor,
    offsets: Tensor | None,
    temperature: float,
    similarity: str,
    size: TileSize,
    need_class_gradient: bool,
) -> Tiles:
    """The tiles of a similarity."""
    kind = DistanceTiles if similarity == "distance" else CosineTiles
    return kind(classes, offsets, temperature, size.rows * size.columns, need_class_gradient)


def summed_class_gradients(tiles: Sequence[Tiles]) -> Tensor:
    """(C, D), what all threads found."""
    total = tiles[0].class_gradient()
    for others in tiles[1:]:
        total = total + others.class_gradient()
    return total


def compare(
    tiles: Tiles, chunk: PixelChunk, size: TileSize, weight: float, need_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Compare p pixels, given by their own embeddings, with all classes.

    Returns:
        Their (p, 1) losses, and the (p, D) gradient of the loss for e' times `weight`, or None where not
        needed. The gradient of the classes is added to `tiles.sums`.
    """
    num_classes = chunk.num_classes
    if size.columns == num_classes:
        return tiles.add_whole(chunk, size.rows, weight, need_gradient)
    starts = range(0, num_classes, size.columns)
    blocks = [(start, min(start + size.columns, num_classes)) for start in starts]
    normalizers = tiles.softmax(chunk, *blocks[0])[1]
    for block in blocks[1:]:
        normalizers = torch.logaddexp(normalizers, tiles.softmax(chunk, *block)[1])
    losses = (normalizers - chunk.target_logits).clamp_min_(0)  # less than zero only by rounding
    if not need_gradient and tiles.sums is None:
        return losses, None

    gradient = torch.zeros_like(chunk.scaled) if need_gradient else None
    missing = torch.expm1(-losses).mul_(-weight)
    for block in blocks:
        shares, of_tile = tiles.softmax(chunk, *block)
        scale = weight * (of_tile - normalizers).exp_().clamp_min_(1e-30)
        of_block = tiles.add_gradients(shares, chunk, *block, scale, missing, need_gradient)
        if gradient is not None and of_block is not None:
            gradient += of_block
    return losses, gradient
