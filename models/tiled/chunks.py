"""Hold what a tile compares: a chunk of pixels with a block of classes; see `models.tiled.tiles`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat

from torch import Tensor

from ..embeddings import compute_dtype
from ..upsampling import CellUpsampling


@dataclass(frozen=True)
class ClassBlock:
    """Name the classes start..stop-1, which one tile compares its pixels with."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        """Count the classes."""
        return self.stop - self.start

    def of(self, table: Tensor) -> Tensor:
        """Select the block's rows of a table of all classes; the table itself if the block has all."""
        return table if self.size == len(table) else table[self.start : self.stop]


@dataclass(frozen=True)
class Classes:
    """Hold what pixels are compared with, in the dtype to compute in.

    Attributes:
        embeddings: (C, D).
        bias: (C,) added to the logits; or None.
        weights: (C,) of the classes in the mean, as `class_weights`; None for all one.
    """

    embeddings: Tensor
    bias: Tensor | None = None
    weights: Tensor | None = None

    @classmethod
    def of(cls, like: Tensor, embeddings: Tensor, bias: Tensor | None, weights: Tensor | None) -> Classes:
        """Convert to the dtype in which pixels `like` these are compared."""
        dtype = compute_dtype(like, embeddings)
        rest = (None if vector is None else vector.detach().to(dtype) for vector in (bias, weights))
        return cls(embeddings.to(dtype), *rest)


@dataclass
class PixelChunk:
    """Hold some pixels, ready to be compared with the classes.

    Attributes:
        full_res: (p, D) e'; None where `scaled` interpolates it when it is asked for.
        low_res_embeddings: (q, D) the e' that `scaled` is interpolated from; `scaled` without an upsampling.
        targets: (p, 1) int64; any class for pixels without label.
        num_classes: C.
        target_logits: (p, 1). Those of distances come from the embeddings directly, since a matrix product
            blurs small ones. Those of inner products with an upsampling are read off the tile.
        upsampling: from the q to the p, of one or several blocks of a size; None where they are the same.
        unlabeled: (p, 1) bool, true for pixels that take no part; or None.
        class_weights: (p, 1), those of the pixels' targets; None for all one.
        norms: (p, 1) |e'|^2; None for cosine.
        target_directions: (p, D), derivative of the target's logit for its embedding; None for cosine.
    """

    full_res: Tensor | None
    low_res_embeddings: Tensor
    targets: Tensor
    num_classes: int
    target_logits: Tensor
    upsampling: CellUpsampling | None = None
    unlabeled: Tensor | None = None
    class_weights: Tensor | None = None
    norms: Tensor | None = None
    target_directions: Tensor | None = None

    @property
    def scaled(self) -> Tensor:
        """Return the e' of the pixels, (p, D)."""
        if self.full_res is not None:
            return self.full_res
        assert self.upsampling is not None
        return self.upsampling.upsample(self.low_res_embeddings)

    def parts(self, rows: int) -> Iterator[PixelChunk]:
        """Yield `rows` pixels at a time, a block's with an upsampling; without `target_directions`."""
        low_res_rows = len(self.low_res_embeddings) * rows // len(self.targets) if self.upsampling else rows
        columns = [
            self.low_res_embeddings.split(low_res_rows),
            self.targets.split(rows),
            self.target_logits.split(rows),
        ]
        nothing = repeat(None)
        full_res = nothing if self.full_res is None else self.full_res.split(rows)
        unlabeled = nothing if self.unlabeled is None else self.unlabeled.split(rows)
        class_weights = nothing if self.class_weights is None else self.class_weights.split(rows)
        norms = nothing if self.norms is None else self.norms.split(rows)
        for low_res, targets, logits, embeddings, *optional in zip(
            *columns, full_res, unlabeled, class_weights, norms, strict=False
        ):
            yield PixelChunk(
                embeddings, low_res, targets, self.num_classes, logits, self.upsampling, *optional
            )

    def has_target_in(self, block: ClassBlock) -> Tensor:
        """Tell whether each pixel's target is in the block: (p, 1) bool."""
        return (self.targets >= block.start) & (self.targets < block.stop)

    def set_targets(self, tile: Tensor, block: ClassBlock, values: Tensor | float) -> None:
        """Overwrite the targets' entries of a (p, c) tile of the block: by (p, 1) values or by one value."""
        if block.start == 0 and block.stop == self.num_classes:
            tile.scatter_(1, self.targets, values)
            return
        rows = self.has_target_in(block).nonzero()[:, 0]
        row_values = values[rows, 0] if isinstance(values, Tensor) else tile.new_tensor(values)
        tile[rows, self.targets[rows, 0] - block.start] = row_values

    def weighted(self, values: Tensor) -> Tensor:
        """Multiply (p, 1) values by the class weights, in place, and set those without label to zero."""
        if self.class_weights is not None:
            values.mul_(self.class_weights)
        return values if self.unlabeled is None else values.masked_fill_(self.unlabeled, 0)

    def upsample_transpose(self, values: Tensor) -> Tensor:
        """Bring (p, K) to (q, K) by the transpose of the interpolation; unchanged without one."""
        return values if self.upsampling is None else self.upsampling.upsample_transpose(values)
