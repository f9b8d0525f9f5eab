"""One tile of logits, pixels x classes, and what it adds to the gradients of cross-entropy.

Everything here is in coordinates divided by the temperature, e' = e / temperature, so that a logit is
-|e' - w'| (`models.distance_tiles`, the paper's) or e'.w (`models.cosine_tiles`), and no pass over the tile
scales it. Buffers of the size of a tile, two for distances and one for products, are used again and again;
nothing else here grows with pixels x classes.

The pixels of a tile may be given by their own embeddings, or by the fewer at low resolution from which these
are interpolated. Then products with classes are formed at low resolution and interpolated, and a tile's share
of the gradients is brought to low resolution before it meets the classes.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from models.upsampling import CellUpsampling

LEAST_SHARE = 1e-30  # well above what underflows


@dataclass
class PixelChunk:
    """A few pixels, ready to be compared with the classes.

    Attributes:
        scaled: (p, D) e'.
        given: (q, D) the embeddings e' from which those are interpolated; without an upsampling the same.
        targets: (p, 1) int64; any class for pixels without label.
        num_classes: C.
        target_logits: (p, 1), from the embeddings directly: a matrix product blurs small distances.
        upsampling: from the q to the p, or None where they are the same.
        unlabelled: (u,) int64 rows of pixels that take no part, or None.
        norms: (p, 1) |e'|^2; None for cosine.
        target_directions: (p, D), derivative of the target's logit for its embedding; None for cosine.
    """

    scaled: Tensor
    given: Tensor
    targets: Tensor
    num_classes: int
    target_logits: Tensor
    upsampling: CellUpsampling | None = None
    unlabelled: Tensor | None = None
    norms: Tensor | None = None
    target_directions: Tensor | None = None

    def has_target_in(self, start: int, stop: int) -> Tensor:
        """(p, 1) bool: whether the target is one of classes start..stop-1."""
        return (self.targets >= start) & (self.targets < stop)

    def put(self, tile: Tensor, start: int, stop: int, values: Tensor | float) -> None:
        """Overwrite the targets among classes start..stop-1 in their (p, c) tile: by (p, 1) values or one."""
        if start == 0 and stop == self.num_classes:
            tile.scatter_(1, self.targets, values)
            return
        rows = self.has_target_in(start, stop).nonzero()[:, 0]
        of_rows = values[rows, 0] if isinstance(values, Tensor) else tile.new_tensor(values)
        tile[rows, self.targets[rows, 0] - start] = of_rows

    def gathered(self, values: Tensor) -> Tensor:
        """(p, K) to (q, K) by the transpose of the interpolation."""
        return values if self.upsampling is None else self.upsampling.gathered(values)


class Tiles:
    """What both similarities share: the buffer of logits and the softmax of one tile.

    Args:
        classes: (C, D), in the dtype to compute in.
        offsets: (C,) added to the logits, zero for every class that is somebody's target; or None.
        temperature: divides the similarities.
        tile_elements: most logits in a tile.
    """

    def __init__(
        self, classes: Tensor, offsets: Tensor | None, temperature: float, tile_elements: int
    ) -> None:
        self.offsets, self.temperature = offsets, temperature
        self._logits = classes.new_empty(tile_elements)

    def another(self) -> Self:
        """Tiles of the same classes for another thread, with buffers and sums of their own."""
        other = copy.copy(self)
        other._own_buffers()
        return other

    def _own_buffers(self) -> None:
        self._logits = torch.empty_like(self._logits)

    def softmax(self, chunk: PixelChunk, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Compare a chunk with classes start..stop-1.

        Returns:
            shares (p, c): the softmax of the logits within the tile, offsets included, in the buffer; and
            normalisers (p, 1): the logarithm of its denominator.
        """
        tile = part_of(self._logits, len(chunk.targets), stop - start)
        self._fill(tile, chunk, start, stop)
        if self.offsets is not None:
            tile += self.offsets[start:stop]
        torch.softmax(tile, dim=1, out=tile)
        return tile, self._normalisers(tile, chunk, start)

    def _normalisers(self, shares: Tensor, chunk: PixelChunk, start: int) -> Tensor:
        """A share is exp(logit - normaliser): read off the targets, off the largest if those underflow."""
        if shares.shape[1] == chunk.num_classes:
            of_targets = shares.gather(1, chunk.targets)
            if of_targets.amin().item() > LEAST_SHARE:
                return chunk.target_logits - of_targets.log_()
        largest, places = shares.max(dim=1, keepdim=True)
        logits = self._logits_of(chunk, start + places)
        if self.offsets is not None:
            logits += self.offsets[start + places]
        return logits - largest.log_()

    def _fill(self, logits: Tensor, chunk: PixelChunk, start: int, stop: int) -> None:
        raise NotImplementedError

    def _logits_of(self, chunk: PixelChunk, classes: Tensor) -> Tensor:
        """The (p, 1) logits of the pixels for (p, 1) classes, one each."""
        raise NotImplementedError


def part_of(buffer: Tensor, rows: int, columns: int) -> Tensor:
    """(rows, columns) at the beginning of a buffer."""
    return buffer.as_strided((rows, columns), (columns, 1))


def between(tensor: Tensor, start: int, stop: int) -> Tensor:
    """Rows start..stop-1: the tensor itself where these are all."""
    return tensor if stop - start == len(tensor) else tensor[start:stop]
