"""One tile of logits, pixels x classes, and what it adds to the gradients of cross-entropy.

Everything here is in coordinates divided by the temperature, e' = e / temperature, so that a logit is
-|e' - w'| (`DistanceTiles`, the paper's) or e'.w (`CosineTiles`), and no pass over the tile scales it.
Buffers of the size of a tile, two for distances and one for products, are used again and again; nothing else
here grows with pixels x classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_LEAST_SHARE = 1e-30  # well above what underflows
_NEAR = 2.0**-12  # share of the squared norms below which a squared distance is formed from differences


@dataclass
class PixelChunk:
    """A few labelled pixels, ready to be compared with the classes.

    Attributes:
        scaled: (p, D) e'.
        queries: (p, Q), whose product with the classes' keys makes a tile.
        target: (p,) int64.
        num_classes: C.
        target_logits: (p,), from the embeddings directly: a matrix product blurs small distances.
        target_directions: (p, D), derivative of the target's logit for its embedding; None for cosine.
    """

    scaled: Tensor
    queries: Tensor
    target: Tensor
    num_classes: int
    target_logits: Tensor
    target_directions: Tensor | None = None

    def targets_in(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Return the rows whose target is one of classes start..stop-1, and its place among those."""
        if start == 0 and stop == self.num_classes:
            return torch.arange(len(self.target), device=self.target.device), self.target
        rows = ((self.target >= start) & (self.target < stop)).nonzero()[:, 0]
        return rows, self.target[rows] - start


class Tiles:
    """What both similarities share: the buffers and the softmax of one tile.

    `in_place`: the shares overwrite the logits, so that half as much passes through the caches.

    Args:
        classes: (C, D), in the dtype to compute in.
        offsets: (C,) added to the logits, zero for every class that is somebody's target; or None.
        temperature: divides the similarities.
        tile_elements: most logits in a tile.
    """

    keys: Tensor  # (C, Q)
    in_place = False

    def __init__(
        self, classes: Tensor, offsets: Tensor | None, temperature: float, tile_elements: int
    ) -> None:
        self.offsets, self.temperature = offsets, temperature
        self._logits = classes.new_empty(tile_elements)
        self._shares = self._logits if self.in_place else classes.new_empty(tile_elements)

    def softmax(self, chunk: PixelChunk, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
        """Compare a chunk with classes start..stop-1.

        Returns:
            logits (p, c) without the offsets (the shares again if `in_place`), shares (p, c): their softmax
            within the tile, offsets included, and normalisers (p,): the logarithm of its denominator. The
            first two live in the buffers.
        """
        shape = len(chunk.target), stop - start
        logits = self._logits[: shape[0] * shape[1]].view(shape)
        shares = self._shares[: shape[0] * shape[1]].view(shape)
        self._fill(logits, chunk, start, stop)
        if self.offsets is not None:
            logits += self.offsets[start:stop]
        torch.softmax(logits, dim=1, out=shares)
        normalisers = self._normalisers(logits, shares, chunk, start)
        if self.offsets is not None and not self.in_place:
            logits -= self.offsets[start:stop]
        return logits, shares, normalisers

    def _normalisers(self, logits: Tensor, shares: Tensor, chunk: PixelChunk, start: int) -> Tensor:
        """A share is exp(logit - normaliser): read off the targets, off the largest if those underflow."""
        if shares.shape[1] == chunk.num_classes:
            of_targets = shares.gather(1, chunk.target[:, None])[:, 0]
            if bool(of_targets.amin() > _LEAST_SHARE):
                return chunk.target_logits - of_targets.log_()
        largest, places = shares.max(dim=1)
        return self._largest_logits(logits, chunk, start, places) - largest.log_()

    def _largest_logits(self, logits: Tensor, chunk: PixelChunk, start: int, places: Tensor) -> Tensor:
        """The (p,) logits at these places of the tile, offsets included."""
        return logits.gather(1, places[:, None])[:, 0]

    def _fill(self, logits: Tensor, chunk: PixelChunk, start: int, stop: int) -> None:
        raise NotImplementedError


class CosineTiles(Tiles):
    """Logits e'.w: each tile is one matrix product, and so is its share of each gradient."""

    in_place = True  # the gradients need the shares alone

    def __init__(
        self,
        classes: Tensor,
        offsets: Tensor | None,
        temperature: float,
        tile_elements: int,
        need_class_gradient: bool,
    ) -> None:
        super().__init__(classes, offsets, temperature, tile_elements)
        self.keys = classes
        self.sums = torch.zeros_like(classes) if need_class_gradient else None  # (C, D)

    def chunk(self, pixels: Tensor, target: Tensor) -> PixelChunk:
        """Prepare (p, D) pixels with their (p,) targets."""
        scaled = pixels / self.temperature
        logits = torch.linalg.vecdot(scaled, self.keys[target])
        return PixelChunk(scaled, scaled, target, len(self.keys), logits)

    def _fill(self, logits: Tensor, chunk: PixelChunk, start: int, stop: int) -> None:
        torch.mm(chunk.queries, self.keys[start:stop].t(), out=logits)
        rows, columns = chunk.targets_in(start, stop)
        logits[rows, columns] = chunk.target_logits[rows]

    def _largest_logits(self, logits: Tensor, chunk: PixelChunk, start: int, places: Tensor) -> Tensor:
        formed_again = torch.linalg.vecdot(chunk.scaled, self.keys[start + places])
        return formed_again if self.offsets is None else formed_again + self.offsets[start + places]

    def add_gradients(
        self,
        logits: Tensor,
        shares: Tensor,
        chunk: PixelChunk,
        start: int,
        stop: int,
        scale: Tensor,
        missing: Tensor,
        gradient: Tensor | None,
    ) -> None:
        """Add what the tile contributes, and overwrite it.

        Args:
            logits: (p, c) from `softmax`; not used.
            shares: (p, c) from `softmax`.
            chunk: the pixels.
            start: first class of the tile.
            stop: class after the last.
            scale: (p, 1) from shares of the tile to probabilities, times the pixel's weight in the mean.
            missing: (p, 1) what the target's probability lacks to one, times the pixel's weight.
            gradient: (p, D) of e', added to; or None.
        """
        rows, columns = chunk.targets_in(start, stop)
        shares[rows, columns] = -(missing[rows, 0] / scale[rows, 0])
        if gradient is not None:
            gradient.addcmul_(scale, shares @ self.keys[start:stop])
        if self.sums is not None:
            self.sums[start:stop].addmm_(shares.t(), scale * chunk.scaled)

    def add_whole(
        self, chunk: PixelChunk, rows: int, weight: float, need_gradient: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Compare a chunk with all classes, `rows` pixels at a time, and add to the gradient of the classes.

        Where a tile spans all classes its shares are the probabilities, and the gradients need nothing else
        but a one taken off the target's. What can be done for the whole chunk is done once: with ten thousand
        classes or more a tile has few pixels, and whatever is done for each of them shows.

        Args:
            chunk: p pixels.
            rows: pixels in a tile of all classes.
            weight: of each pixel in the mean.
            need_gradient: whether the gradient of the pixels is wanted.

        Returns:
            The (p,) losses, and the (p, D) gradient of e' or None.
        """
        targets, target_logits = chunk.target[:, None], chunk.target_logits[:, None]
        of_targets = torch.empty_like(target_logits)
        gradient = torch.empty_like(chunk.scaled) if need_gradient else None
        weighted = weight * chunk.scaled
        for first in range(0, len(targets), rows):
            part = slice(first, first + rows)
            of_part = targets[part]
            shares = self._logits[: len(of_part) * chunk.num_classes].view(len(of_part), chunk.num_classes)
            torch.mm(chunk.scaled[part], self.keys.t(), out=shares)
            shares.scatter_(1, of_part, target_logits[part])
            if self.offsets is not None:
                shares += self.offsets
            torch.softmax(shares, dim=1, out=shares)
            of_target = torch.gather(shares, 1, of_part, out=of_targets[part])
            shares.scatter_(1, of_part, of_target - 1)
            if gradient is not None:
                torch.mm(shares, self.keys, out=gradient[part])
            if self.sums is not None:
                self.sums.addmm_(shares.t(), weighted[part])
        losses = of_targets[:, 0].log().neg_()
        self._lost_targets(losses, of_targets[:, 0], chunk, rows)
        return losses, None if gradient is None else gradient.mul_(weight)

    def _lost_targets(self, losses: Tensor, of_targets: Tensor, chunk: PixelChunk, rows: int) -> None:
        """Form the losses anew of those pixels whose target's share underflows."""
        lost = (of_targets <= _LEAST_SHARE).nonzero()[:, 0]
        for some in lost.split(rows) if len(lost) else ():
            part = PixelChunk(
                chunk.scaled[some], chunk.queries[some], chunk.target[some],
                chunk.num_classes, chunk.target_logits[some],
            )  # fmt: skip
            losses[some] = self.softmax(part, 0, chunk.num_classes)[2] - part.target_logits

    def class_gradient(self) -> Tensor:
        """Return the (C, D) gradient of the class embeddings."""
        assert self.sums is not None
        return self.sums


class DistanceTiles(Tiles):
    """Logits -|e' - w'|, the paper's, from the matrix product (-2 e', |e'|^2, 1) . (w', 1, |w'|^2).

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
        scaled = classes / temperature
        norms = scaled.square().sum(dim=1, keepdim=True)
        self.keys = torch.cat([scaled, torch.ones_like(norms), norms], dim=1)
        self._classes = self.keys[:, :-2]  # w'
        self._largest_norm = norms.max()
        self._pairs = max(1, tile_elements // (8 * classes.shape[1]))
        self._floor: Tensor | None = None
        # (C, D+1) sum of p (e' - w') / |e' - w'| in two parts: what multiplies 1, and what multiplies w'.
        self.sums = classes.new_zeros(len(classes), classes.shape[1] + 1) if need_class_gradient else None

    def chunk(self, pixels: Tensor, target: Tensor) -> PixelChunk:
        """Prepare (p, D) pixels with their (p,) targets."""
        scaled = pixels / self.temperature
        norms = scaled.square().sum(dim=1, keepdim=True)
        queries = torch.cat([-2 * scaled, norms, torch.ones_like(norms)], dim=1)
        differences = scaled - self._classes[target]
        distances = torch.linalg.vector_norm(differences, dim=1, keepdim=True)
        directions = differences.div_(distances.masked_fill(distances == 0, 1))
        return PixelChunk(scaled, queries, target, len(self.keys), -distances[:, 0], directions)

    def _fill(self, logits: Tensor, chunk: PixelChunk, start: int, stop: int) -> None:
        squares = torch.mm(chunk.queries, self.keys[start:stop].t(), out=logits)
        rows, columns = chunk.targets_in(start, stop)
        norm = self._largest_norm + chunk.queries[:, -2].max()
        squares[rows, columns] = norm  # anything that is not near; the exact logit follows below
        self._floor = None
        if bool(squares.amin() < _NEAR * norm):
            self._refine(squares, chunk, start, _NEAR * norm)
            self._floor = norm.mul(torch.finfo(norm.dtype).eps).sqrt_()
        squares.sqrt_().neg_()
        logits[rows, columns] = chunk.target_logits[rows]

    def _refine(self, squares: Tensor, chunk: PixelChunk, start: int, near: Tensor) -> None:
        rows, columns = (squares < near).nonzero(as_tuple=True)
        for first in range(0, len(rows), self._pairs):
            some_rows, some_columns = rows[first : first + self._pairs], columns[first : first + self._pairs]
            differences = chunk.scaled[some_rows] - self._classes[start + some_columns]
            squares[some_rows, some_columns] = differences.square_().sum(dim=1)

    def add_gradients(
        self,
        logits: Tensor,
        shares: Tensor,
        chunk: PixelChunk,
        start: int,
        stop: int,
        scale: Tensor,
        missing: Tensor,
        gradient: Tensor | None,
    ) -> None:
        """Add what the tile contributes, and overwrite it. Arguments as for `CosineTiles.add_gradients`."""
        rows, columns = chunk.targets_in(start, stop)
        shares[rows, columns] = 0
        logits[rows, columns] = -1
        if self._floor is not None:
            # Within rounding of a class the direction is noise: let it fade to zero instead of growing. Where
            # the two are the same there is none: products would leave the rounding of large numbers.
            shares.masked_fill_(logits == 0, 0)
            logits.clamp_max_(-self._floor)
        weights = shares.div_(logits)  # -p / |e' - w'|
        if gradient is not None:
            toward = chunk.scaled * weights.sum(dim=1, keepdim=True) - weights @ self._classes[start:stop]
            gradient.addcmul_(scale, toward)
        if self.sums is not None:
            self.sums[start:stop].addmm_(weights.t(), torch.cat([scale * chunk.scaled, scale], dim=1))
        # The targets are the nearest ones, where products would lose the direction.
        assert chunk.target_directions is not None
        slopes = (missing * chunk.target_directions)[rows]
        if gradient is not None:
            gradient[rows] += slopes
        if self.sums is not None:
            self.sums[:, :-1].index_add_(0, chunk.target[rows], slopes)

    def class_gradient(self) -> Tensor:
        """Return the (C, D) gradient of the class embeddings."""
        assert self.sums is not None
        gradient = self._classes * self.sums[:, -1:]
        return gradient.sub_(self.sums[:, :-1]).div_(self.temperature)
