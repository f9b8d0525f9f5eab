"""Tiles of inner products, and what they add to the gradients of cross-entropy: see `models.tiles`."""

from __future__ import annotations

import torch
from torch import Tensor

from models.tiles import LEAST_SHARE, PixelChunk, Tiles, between, part_of
from models.upsampling import CellUpsampling


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
            between(self.sums, start, stop).addmm_(shares.t(), scale * chunk.given)
        return scale * (shares @ between(self._classes, start, stop)) if need_gradient else None

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
            shares = part_of(self._logits, len(of_part), chunk.num_classes)
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
        lost = (of_targets <= LEAST_SHARE).nonzero()[:, 0]
        for some in lost.split(rows) if len(lost) else ():
            scaled, target_logits = chunk.scaled[some], chunk.target_logits[some]
            part = PixelChunk(scaled, scaled, chunk.targets[some], chunk.num_classes, target_logits)
            losses[some] = self.softmax(part, 0, chunk.num_classes)[1] - part.target_logits

    def class_gradient(self) -> Tensor:
        """Return the (C, D) gradient of the class embeddings."""
        assert self.sums is not None
        return self.sums
