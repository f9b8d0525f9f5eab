"""One tile of logits, pixels x classes, and what it adds to the gradients of cross-entropy.

Everything here is in coordinates divided by the temperature, e' = e / temperature, so that a logit is
-|e' - w'| (`models.tiled.distance_tiles`, the paper's) or e'.w (`models.tiled.cosine_tiles`), and no pass over the tile
scales it. Buffers of the size of a tile, two for distances and one for products, are used again and again;
nothing else here grows with pixels x classes.

The pixels of a tile may be given by their own embeddings, or by the fewer at low resolution from which these
are interpolated. Then products with classes are formed at low resolution and interpolated, and a tile's share
of the gradients is brought to low resolution before it meets the classes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import Self

import torch
from torch import Tensor

from ..upsampling import CellUpsampling

_LEAST_SHARE = 1e-30  # well above what underflows


@dataclass
class PixelChunk:
    """Some pixels, ready to be compared with the classes.

    Attributes:
        scaled: (p, D) e'.
        given: (q, D) the embeddings e' from which those are interpolated; without an upsampling the same.
        targets: (p, 1) int64; any class for pixels without label.
        num_classes: C.
        target_logits: (p, 1), from the embeddings directly: a matrix product blurs small distances.
        upsampling: from the q to the p, of one or several blocks of a size; None where they are the same.
        unlabeled: (p, 1) bool, true for pixels that take no part; or None.
        norms: (p, 1) |e'|^2; None for cosine.
        target_directions: (p, D), derivative of the target's logit for its embedding; None for cosine.
    """

    scaled: Tensor
    given: Tensor
    targets: Tensor
    num_classes: int
    target_logits: Tensor
    upsampling: CellUpsampling | None = None
    unlabeled: Tensor | None = None
    norms: Tensor | None = None
    target_directions: Tensor | None = None

    def parts(self, rows: int) -> Iterator[PixelChunk]:
        """`rows` pixels at a time, a block's where there is an upsampling; without `target_directions`."""
        of_given = len(self.given) * rows // len(self.scaled) if self.upsampling else rows
        columns = [
            self.scaled.split(rows),
            self.given.split(of_given),
            self.targets.split(rows),
            self.target_logits.split(rows),
        ]
        nothing = repeat(None)
        unlabeled = nothing if self.unlabeled is None else self.unlabeled.split(rows)
        norms = nothing if self.norms is None else self.norms.split(rows)
        for scaled, given, targets, logits, lacking, norm in zip(*columns, unlabeled, norms, strict=False):
            yield PixelChunk(
                scaled, given, targets, self.num_classes, logits, self.upsampling, lacking, norm
            )  # fmt: skip

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

    Attributes:
        sums: (C, D) of what the classes' gradient is made from, or None.

    Args:
        classes: (C, D), in the dtype to compute in.
        offsets: (C,) added to the logits, zero for every class that is somebody's target; or None.
        temperature: divides the similarities.
        tile_elements: most logits in a tile.
        need_class_gradient: whether the gradient of the classes is wanted.
    """

    _classes: Tensor  # (C, D), what is multiplied with weights

    def __init__(
        self,
        classes: Tensor,
        offsets: Tensor | None,
        temperature: float,
        tile_elements: int,
        need_class_gradient: bool,
    ) -> None:
        self.offsets, self.temperature = offsets, temperature
        self._classes = classes
        self._logits = classes.new_empty(tile_elements)
        self.sums = torch.zeros_like(classes) if need_class_gradient else None

    def another(self) -> Self:
        """Tiles of the same classes for another thread, with buffers and sums of their own."""
        other = copy.copy(self)
        other._own_buffers()
        return other

    def _own_buffers(self) -> None:
        self._logits = torch.empty_like(self._logits)
        self.sums = None if self.sums is None else torch.zeros_like(self.sums)

    def softmax(self, chunk: PixelChunk, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Compare a chunk with classes start..stop-1.

        Returns:
            shares (p, c): the softmax of the logits within the tile, offsets included, in the buffer; and
            normalizers (p, 1): the logarithm of its denominator.
        """
        shares = self._shares(chunk, start, stop)
        return shares, self._normalizers(shares, chunk, start)

    def _shares(self, chunk: PixelChunk, start: int, stop: int) -> Tensor:
        tile = part_of(self._logits, len(chunk.targets), stop - start)
        self._fill(tile, chunk, start, stop)
        if self.offsets is not None:
            tile += self.offsets[start:stop]
        return torch.softmax(tile, dim=1, out=tile)

    def add_whole(
        self, chunk: PixelChunk, rows: int, weight: float, need_gradient: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Compare a chunk with all classes, `rows` pixels at a time, and add to the gradient of the classes.

        Where a tile spans all classes its shares are the probabilities, and the loss is read off those of the
        targets. What can be done for the whole chunk is done once: whatever is done for each tile shows.

        Args:
            chunk: p pixels.
            rows: pixels in a tile of all classes; with an upsampling, those of a block.
            weight: of each pixel in the mean.
            need_gradient: whether the gradient of the pixels is wanted.

        Returns:
            The (p, 1) losses, zero where unlabeled, and the (q, D) gradient of the given e' or None.
        """
        of_targets, toward = torch.empty_like(chunk.target_logits), torch.empty_like(chunk.target_logits)
        gradient = torch.empty_like(chunk.given) if need_gradient else None
        parts = zip(chunk.parts(rows), of_targets.split(rows), toward.split(rows), strict=True)
        done = 0
        for part, of_part, toward_part in parts:
            shares = self._shares(part, 0, chunk.num_classes)
            torch.gather(shares, 1, part.targets, out=of_part)
            if gradient is None and self.sums is None:
                continue
            weights = self._weights(shares, part, of_part)
            if part.unlabeled is not None:
                weights.index_fill_(0, part.unlabeled.nonzero()[:, 0], 0)
            low = part.gathered(weights)
            if gradient is not None:
                torch.mm(low, self._classes, out=gradient[done : done + len(low)])
            if self.sums is not None:
                self.sums.addmm_(low.t(), part.given, alpha=weight)
            self._note(weights, low, toward_part, weight)
            done += len(low)
        losses = of_targets.log().neg_()
        self._lost_targets(losses, of_targets, chunk, rows)
        if chunk.unlabeled is not None:
            losses.masked_fill_(chunk.unlabeled, 0)
        if gradient is not None:
            gradient *= weight
        self._finish(chunk, of_targets, toward, gradient, weight)
        return losses, gradient

    def _lost_targets(self, losses: Tensor, of_targets: Tensor, chunk: PixelChunk, rows: int) -> None:
        """Form the losses anew of those pixels whose target's share underflows."""
        if of_targets.amin().item() > _LEAST_SHARE:
            return
        lost = (of_targets[:, 0] <= _LEAST_SHARE).nonzero()[:, 0]  # none where they are NaN
        for some in lost.split(rows) if len(lost) > 0 else ():
            part = self.chunk(chunk.scaled[some], chunk.targets[some, 0])
            losses[some] = self.softmax(part, 0, chunk.num_classes)[1] - part.target_logits

    def _normalizers(self, shares: Tensor, chunk: PixelChunk, start: int) -> Tensor:
        """A share is exp(logit - normalizer): read off the largest, which does not underflow."""
        largest, places = shares.max(dim=1, keepdim=True)
        logits = self._logits_of(chunk, start + places)
        if self.offsets is not None:
            logits += self.offsets[start + places]
        return logits - largest.log_()

    def chunk(
        self,
        given: Tensor,
        target: Tensor,
        upsampling: CellUpsampling | None = None,
        unlabeled: Tensor | None = None,
    ) -> PixelChunk:
        """Prepare pixels with (p,) targets: `given` are their e', or the (q, D) to interpolate them from."""
        raise NotImplementedError

    def add_gradients(
        self,
        shares: Tensor,
        chunk: PixelChunk,
        start: int,
        stop: int,
        scale: Tensor,
        missing: Tensor,
        need_gradient: bool,
    ) -> Tensor | None:
        """Add what a tile of some classes contributes to the gradient of the classes, and overwrite it.

        Args:
            shares: (p, c) from `softmax`.
            chunk: the pixels, without an upsampling and all labeled.
            start: first class of the tile.
            stop: class after the last.
            scale: (p, 1) from shares of the tile to probabilities, times the pixel's weight in the mean.
            missing: (p, 1) what the target's probability lacks to one, times the pixel's weight.
            need_gradient: whether the gradient of the pixels is wanted.

        Returns:
            The (p, D) contribution to the gradient of e', or None.
        """
        raise NotImplementedError

    def class_gradient(self) -> Tensor:
        """Return the (C, D) gradient of the class embeddings."""
        raise NotImplementedError

    def _fill(self, logits: Tensor, chunk: PixelChunk, start: int, stop: int) -> None:
        """Write the logits of a tile, the targets' from `target_logits`."""
        raise NotImplementedError

    def _logits_of(self, chunk: PixelChunk, classes: Tensor) -> Tensor:
        """The (p, 1) logits of the pixels for (p, 1) classes, one each."""
        raise NotImplementedError

    def _weights(self, probabilities: Tensor, chunk: PixelChunk, of_targets: Tensor) -> Tensor:
        """Turn the (p, C) probabilities of a tile into what the embeddings are multiplied with."""
        raise NotImplementedError

    def _note(self, weights: Tensor, low: Tensor, toward: Tensor, weight: float) -> None:
        """Keep what else of a tile's weights (p, C), and of those at low resolution (q, C), is needed."""

    def _finish(
        self, chunk: PixelChunk, of_targets: Tensor, toward: Tensor, gradient: Tensor | None, weight: float
    ) -> None:
        """Add to the gradients, (q, D) that of e', what is done once for a chunk."""


def part_of(buffer: Tensor, rows: int, columns: int) -> Tensor:
    """(rows, columns) at the beginning of a buffer."""
    return buffer.as_strided((rows, columns), (columns, 1))


def between(tensor: Tensor, start: int, stop: int) -> Tensor:
    """Rows start..stop-1: the tensor itself where these are all."""
    return tensor if stop - start == len(tensor) else tensor[start:stop]
