"""One tile of logits, pixels x classes, and what it adds to the gradients of cross-entropy.

Everything here is in coordinates divided by the temperature, e' = e / temperature, so that a logit is
-|e' - w'| (`DistanceTiles`, the paper's) or e'.w (`CosineTiles`), and no pass over the tile scales it.
Buffers of the size of a tile, two for distances and one for products, are used again and again; nothing else
here grows with pixels x classes.

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

_LEAST_SHARE = 1e-30  # well above what underflows
_NEAR = 2.0**-12  # share of the squared norms below which a squared distance is formed from differences


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
        tile = _part(self._logits, len(chunk.targets), stop - start)
        self._fill(tile, chunk, start, stop)
        if self.offsets is not None:
            tile += self.offsets[start:stop]
        torch.softmax(tile, dim=1, out=tile)
        return tile, self._normalisers(tile, chunk, start)

    def _normalisers(self, shares: Tensor, chunk: PixelChunk, start: int) -> Tensor:
        """A share is exp(logit - normaliser): read off the targets, off the largest if those underflow."""
        if shares.shape[1] == chunk.num_classes:
            of_targets = shares.gather(1, chunk.targets)
            if of_targets.amin().item() > _LEAST_SHARE:
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


class CosineTiles(Tiles):
    """Logits e'.w: each tile is one matrix product, and so is its share of each gradient."""

    def __init__(
        self,
        classes: Tensor,
        offsets: Tensor | None,
        temperature: float,
        tile_elements: int,
        need_class_gradient: bool,
    ) -> None:
        super().__init__(classes, offsets, temperature, tile_elements)
        self._classes = classes
        self.sums = torch.zeros_like(classes) if need_class_gradient else None  # (C, D)

    def _own_buffers(self) -> None:
        super()._own_buffers()
        self.sums = None if self.sums is None else torch.zeros_like(self.sums)

    def chunk(
        self,
        given: Tensor,
        target: Tensor,
        upsampling: CellUpsampling | None = None,
        unlabelled: Tensor | None = None,
    ) -> PixelChunk:
        """Prepare pixels with (p,) targets: `given` are their e', or the (q, D) to interpolate them from."""
        scaled = given if upsampling is None else upsampling.spread(given)
        logits = torch.linalg.vecdot(scaled, self._classes[target])[:, None]
        return PixelChunk(
            scaled, given, target[:, None], len(self._classes), logits, upsampling, unlabelled
        )  # fmt: skip

    def _fill(self, logits: Tensor, chunk: PixelChunk, start: int, stop: int) -> None:
        if chunk.upsampling is None:
            torch.mm(chunk.given, self._classes[start:stop].t(), out=logits)
        else:
            chunk.upsampling.spread(chunk.given @ self._classes[start:stop].t(), out=logits)
        chunk.put(logits, start, stop, chunk.target_logits)

    def _logits_of(self, chunk: PixelChunk, classes: Tensor) -> Tensor:
        return torch.linalg.vecdot(chunk.scaled, self._classes[classes[:, 0]])[:, None]

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
        """Add what the tile contributes to the gradient of the classes, and overwrite it.

        Args:
            shares: (p, c) from `softmax`, zero for pixels without label.
            chunk: the pixels.
            start: first class of the tile.
            stop: class after the last.
            scale: from shares of the tile to probabilities, times the pixel's weight in the mean: (p, 1), or
                (1, 1) where it is the same for all pixels, as it must be with an upsampling.
            missing: (p, 1) what the target's probability lacks to one, times the pixel's weight.
            need_gradient: whether the gradient of the pixels is wanted.

        Returns:
            The (q, D) contribution to the gradient of the given e', or None.
        """
        chunk.put(shares, start, stop, -missing / scale)
        shares = chunk.gathered(shares)
        if self.sums is not None:
            self.sums[start:stop].addmm_(shares.t(), scale * chunk.given)
        return scale * (shares @ self._classes[start:stop]) if need_gradient else None

    def add_whole(
        self, chunk: PixelChunk, rows: int, weight: float, need_gradient: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Compare a chunk with all classes, `rows` pixels at a time, and add to the gradient of the classes.

        Where a tile spans all classes its shares are the probabilities, and the gradients need nothing else
        but a one taken off the target's. What can be done for the whole chunk is done once: with ten thousand
        classes or more a tile has few pixels, and whatever is done for each of them shows.

        Args:
            chunk: p pixels, given by their own embeddings and all labelled.
            rows: pixels in a tile of all classes.
            weight: of each pixel in the mean.
            need_gradient: whether the gradient of the pixels is wanted.

        Returns:
            The (p, 1) losses, and the (p, D) gradient of e' or None.
        """
        targets, target_logits = chunk.targets, chunk.target_logits
        of_targets = torch.empty_like(target_logits)
        gradient = torch.empty_like(chunk.scaled) if need_gradient else None
        weighted = weight * chunk.scaled
        for first in range(0, len(targets), rows):
            part = slice(first, first + rows)
            of_part = targets[part]
            shares = _part(self._logits, len(of_part), chunk.num_classes)
            torch.mm(chunk.scaled[part], self._classes.t(), out=shares)
            shares.scatter_(1, of_part, target_logits[part])
            if self.offsets is not None:
                shares += self.offsets
            torch.softmax(shares, dim=1, out=shares)
            of_target = torch.gather(shares, 1, of_part, out=of_targets[part])
            shares.scatter_(1, of_part, of_target - 1)
            if gradient is not None:
                torch.mm(shares, self._classes, out=gradient[part])
            if self.sums is not None:
                self.sums.addmm_(shares.t(), weighted[part])
        losses = of_targets.log().neg_()
        self._lost_targets(losses, of_targets, chunk, rows)
        return losses, None if gradient is None else gradient.mul_(weight)

    def _lost_targets(self, losses: Tensor, of_targets: Tensor, chunk: PixelChunk, rows: int) -> None:
        """Form the losses anew of those pixels whose target's share underflows."""
        lost = (of_targets <= _LEAST_SHARE).nonzero()[:, 0]
        for some in lost.split(rows) if len(lost) else ():
            scaled, target_logits = chunk.scaled[some], chunk.target_logits[some]
            part = PixelChunk(scaled, scaled, chunk.targets[some], chunk.num_classes, target_logits)
            losses[some] = self.softmax(part, 0, chunk.num_classes)[1] - part.target_logits

    def class_gradient(self) -> Tensor:
        """Return the (C, D) gradient of the class embeddings."""
        assert self.sums is not None
        return self.sums


class DistanceTiles(Tiles):
    """Logits -|e' - w'|, the paper's, from the matrix product |w'|^2 + (e', |e'|^2) . (-2 w', 1).

    The product blurs squared distances by the rounding of the squared norms. Those that would suffer are
    formed anew from differences; where e' meets w' exactly, the derivative of the distance is zero.
    """

    def __init__(
        self,
        classes: Tensor,
        offsets: Tensor | None,
        temperature: float,
        tile_elements: int,
        need_class_gradient: bool,
    ) -> None:
        super().__init__(classes, offsets, temperature, tile_elements)
        self._classes = classes / temperature  # (C, D) w'
        self._norms = self._classes.square().sum(dim=1)  # (C,)
        self._keys = torch.cat([-2 * self._classes, torch.ones_like(self._norms)[:, None]], dim=1)  # (C, D+1)
        self._largest_norm = float(self._norms.max())
        self._pairs = max(1, tile_elements // (8 * classes.shape[1]))
        self._inverses = torch.empty_like(self._logits)  # 1 / |e' - w'|, zero where it has no direction
        # (C, D) sum of p e' / |e' - w'| and (C,) of p / |e' - w'|, which multiplies w'.
        self.sums = torch.zeros_like(classes) if need_class_gradient else None
        self._weight_sums = classes.new_zeros(len(classes)) if need_class_gradient else None

    def _own_buffers(self) -> None:
        super()._own_buffers()
        self._inverses = torch.empty_like(self._inverses)
        if self.sums is not None and self._weight_sums is not None:
            self.sums, self._weight_sums = torch.zeros_like(self.sums), torch.zeros_like(self._weight_sums)

    def chunk(
        self,
        given: Tensor,
        target: Tensor,
        upsampling: CellUpsampling | None = None,
        unlabelled: Tensor | None = None,
    ) -> PixelChunk:
        """Prepare pixels with (p,) targets: `given` are their e', or the (q, D) to interpolate them from."""
        scaled = given if upsampling is None else upsampling.spread(given)
        norms = torch.linalg.vecdot(scaled, scaled)[:, None]
        differences = scaled - self._classes[target]
        distances = torch.linalg.vector_norm(differences, dim=1, keepdim=True)
        directions = differences.div_(distances.clamp_min(torch.finfo(distances.dtype).tiny))
        return PixelChunk(
            scaled, given, target[:, None], len(self._classes), distances.neg_(),
            upsampling, unlabelled, norms, directions,
        )  # fmt: skip

    def _fill(self, logits: Tensor, chunk: PixelChunk, start: int, stop: int) -> None:
        assert chunk.norms is not None
        keys, norms = self._keys[start:stop].t(), self._norms[start:stop]
        if chunk.upsampling is None:
            queries = torch.cat([chunk.given, chunk.norms], dim=1)
            squares = torch.addmm(norms, queries, keys, out=logits)
        else:  # the square of an interpolated vector is not the interpolated square: it is added afterwards
            chunk.upsampling.spread(torch.addmm(norms, chunk.given, keys[:-1]), out=logits)
            squares = logits.add_(chunk.norms)
        norm = self._largest_norm + chunk.norms.max().item()
        chunk.put(squares, start, stop, norm)  # anything that is not near; the exact logit follows below
        near = squares.amin().item() < _NEAR * norm
        inverses = _part(self._inverses, *squares.shape)
        if near:
            self._refine(squares, chunk, start, _NEAR * norm)
            meeting = squares == 0
            squares.masked_fill_(meeting, 1)
        torch.rsqrt(squares, out=inverses)
        squares.mul_(inverses).neg_()
        if near:
            # Within rounding of a class the direction is noise: let it fade to zero instead of growing. Where
            # the two are the same there is none: products would leave the rounding of large numbers.
            logits.masked_fill_(meeting, 0)
            steepest = (norm * torch.finfo(logits.dtype).eps) ** -0.5
            inverses.masked_fill_(meeting, 0).clamp_max_(steepest)
        chunk.put(logits, start, stop, chunk.target_logits)
        chunk.put(inverses, start, stop, 0.0)  # the targets' directions are in the chunk

    def _refine(self, squares: Tensor, chunk: PixelChunk, start: int, near: float) -> None:
        rows, columns = (squares < near).nonzero(as_tuple=True)
        for first in range(0, len(rows), self._pairs):
            some_rows, some_columns = rows[first : first + self._pairs], columns[first : first + self._pairs]
            differences = chunk.scaled[some_rows] - self._classes[start + some_columns]
            squares[some_rows, some_columns] = differences.square_().sum(dim=1)

    def _logits_of(self, chunk: PixelChunk, classes: Tensor) -> Tensor:
        differences = chunk.scaled - self._classes[classes[:, 0]]
        return torch.linalg.vector_norm(differences, dim=1, keepdim=True).neg_()

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
        """Add what the tile contributes, and overwrite it. Arguments as for `CosineTiles.add_gradients`."""
        weights = shares.mul_(_part(self._inverses, *shares.shape))  # p / |e' - w'|, without the targets
        # The targets are the nearest ones, where products would lose the direction.
        assert chunk.target_directions is not None
        slopes = missing * chunk.target_directions
        if stop - start < chunk.num_classes:
            slopes *= chunk.has_target_in(start, stop)
        gradient = None
        if need_gradient:
            toward = weights.sum(dim=1, keepdim=True).mul_(scale)
            gradient = chunk.gathered(torch.addcmul(slopes, toward, chunk.scaled, value=-1))
        weights = chunk.gathered(weights)  # (q, c)
        if gradient is not None:
            gradient.addcmul_(scale, weights @ self._classes[start:stop])
        if self.sums is not None and self._weight_sums is not None:
            self.sums[start:stop].addmm_(weights.t(), scale * chunk.given)
            if len(scale) == 1:
                self._weight_sums[start:stop].addcmul_(weights.sum(dim=0), scale[0])
            else:
                self._weight_sums[start:stop].addmv_(weights.t(), scale[:, 0])
            self.sums.index_add_(0, chunk.targets[:, 0], slopes, alpha=-1)
        return gradient

    def class_gradient(self) -> Tensor:
        """Return the (C, D) gradient of the class embeddings."""
        assert self.sums is not None
        assert self._weight_sums is not None
        gradient = self.sums - self._classes * self._weight_sums[:, None]
        return gradient.div_(self.temperature)


def _part(buffer: Tensor, rows: int, columns: int) -> Tensor:
    return buffer[: rows * columns].view(rows, columns)
