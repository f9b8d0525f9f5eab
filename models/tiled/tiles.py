"""Compute one tile of logits, pixels x classes, and its contribution to the gradients of cross-entropy.

Everything here is in coordinates divided by the temperature, e' = e / temperature. A logit is then -|e' - w'|
(`distance_tiles`, the paper's) or e'.w (`cosine_tiles`), and no pass over the tile scales it. Buffers of the
size of a tile, two for distances and one for products, are reused; nothing else here grows with pixels x
classes.

The pixels of a tile are given by their own embeddings, or by the fewer at low resolution from which these are
interpolated. Then products with classes are formed at low resolution and interpolated, and the gradients'
weights are brought to low resolution before they meet the classes.
"""

from __future__ import annotations

import copy
from typing import Self

import torch
from torch import Tensor

from ..embeddings import LossOptions
from ..upsampling import CellUpsampling
from .chunks import ClassBlock, Classes, PixelChunk

_MIN_TARGET_PROB = 1e-30  # well above what underflows


class Tiles:
    """Hold the buffer of logits and compute the softmax of one tile, for either similarity.

    Attributes:
        sums: (C, D) from which the gradient of the classes is formed, or None.
        bias_sums: (C,) the gradient of the bias, or None.

    Args:
        classes: what the pixels are compared with.
        options: temperature and label smoothing count.
        tile_elements: most logits in a tile.
        need_class_gradient: whether the gradient of the class embeddings is wanted.
        need_bias_gradient: whether that of the bias is wanted.
    """

    _classes: Tensor  # (C, D), what is multiplied with weights

    def __init__(
        self,
        classes: Classes,
        options: LossOptions,
        tile_elements: int,
        need_class_gradient: bool,
        need_bias_gradient: bool,
    ) -> None:
        self.temperature = options.temperature
        self._classes, self._bias, self._class_weights = classes.embeddings, classes.bias, classes.weights
        self._logits = self._classes.new_empty(tile_elements)
        self.sums = torch.zeros_like(self._classes) if need_class_gradient else None
        self.bias_sums = self._classes.new_zeros(len(self._classes)) if need_bias_gradient else None

    def clone_for_worker(self) -> Self:
        """Copy for another thread: the same classes, with buffers and sums of its own."""
        other = copy.copy(self)
        other._own_buffers()
        return other

    def _own_buffers(self) -> None:
        self._logits = torch.empty_like(self._logits)
        self.sums = None if self.sums is None else torch.zeros_like(self.sums)
        self.bias_sums = None if self.bias_sums is None else torch.zeros_like(self.bias_sums)

    @property
    def need_gradient(self) -> bool:
        """Tell whether any gradient on the side of the classes is wanted."""
        return self.sums is not None or self.bias_sums is not None

    def softmax(self, chunk: PixelChunk, block: ClassBlock) -> tuple[Tensor, Tensor]:
        """Compare a chunk with a block of classes.

        Returns:
            probs (p, c): the softmax of the logits within the tile, in the buffer; and
            lse (p, 1): the log-sum-exp of the tile's logits.
        """
        probs = self._probs(chunk, block)
        return probs, self._lse(probs, chunk, block)

    def _probs(self, chunk: PixelChunk, block: ClassBlock) -> Tensor:
        tile = part_of(self._logits, len(chunk.targets), block.size)
        self._fill(tile, chunk, block)
        return torch.softmax(tile, dim=1, out=tile)

    def add_whole(
        self, chunk: PixelChunk, rows: int, weight: float, need_gradient: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Compare a chunk with all classes, `rows` pixels at a time, and add to the gradient of the classes.

        A tile that spans all classes holds the probabilities, and the loss is -log of the targets' entries.
        What can be done once per chunk is not done per tile: every operation per tile costs time.

        Args:
            chunk: p pixels.
            rows: pixels in a tile of all classes; with an upsampling, those of a block.
            weight: one divided by what the sum of the losses is divided by.
            need_gradient: whether the gradient of the pixels is wanted.

        Returns:
            The (p, 1) losses, zero where unlabeled and times the class weights, and the (q, D) gradient of
            the low-resolution e' or None.
        """
        target_probs = torch.empty_like(chunk.target_logits)
        weight_row_sums = torch.empty_like(chunk.target_logits)
        gradient = torch.empty_like(chunk.low_res_embeddings) if need_gradient else None
        all_classes = ClassBlock(0, chunk.num_classes)
        outputs = target_probs.split(rows), weight_row_sums.split(rows)
        done = 0  # rows of the gradient
        for part, part_target_probs, part_row_sums in zip(chunk.parts(rows), *outputs, strict=True):
            # 1. Probabilities of all classes, and those of the targets.
            probs = self._probs(part, all_classes)
            torch.gather(probs, 1, part.targets, out=part_target_probs)
            if gradient is None and not self.need_gradient:
                continue
            # 2. The gradients' weights (p, C), in place of the probabilities, and at low resolution (q, C).
            self._accumulate_probs(probs, part, weight)
            weights = self._weights(probs, part, part_target_probs)
            if part.unlabeled is not None:
                weights.index_fill_(0, part.unlabeled.nonzero()[:, 0], 0)
            low_res_weights = part.upsample_transpose(weights)
            # 3. Gradient of the pixels: weights x classes. Of the classes: weights^T x pixels.
            if gradient is not None:
                torch.mm(low_res_weights, self._classes, out=gradient[done : done + len(low_res_weights)])
            if self.sums is not None:
                self.sums.addmm_(low_res_weights.t(), part.low_res_embeddings, alpha=weight)
            self._accumulate_tile(weights, low_res_weights, part_row_sums, weight)
            done += len(low_res_weights)
        # 4. Losses of the whole chunk; those whose probability underflows are computed again.
        losses = target_probs.log().neg_()
        self._recompute_underflowed(losses, target_probs, chunk, rows)
        chunk.weighted(losses)
        # 5. What the gradients need once per chunk.
        if gradient is not None:
            gradient *= weight
        self._finish_chunk(chunk, target_probs, weight_row_sums, gradient, weight)
        self.finish(chunk, losses, gradient, weight)
        return losses, gradient

    def _recompute_underflowed(
        self, losses: Tensor, target_probs: Tensor, chunk: PixelChunk, rows: int
    ) -> None:
        """Overwrite the losses of pixels whose target's probability underflows: log-sum-exp minus logit."""
        if target_probs.amin().item() > _MIN_TARGET_PROB:
            return
        underflowed = (target_probs[:, 0] <= _MIN_TARGET_PROB).nonzero()[:, 0]  # none where they are NaN
        if len(underflowed) == 0:
            return
        embeddings = chunk.scaled
        for some in underflowed.split(rows):
            part = self.chunk(embeddings[some], chunk.targets[some, 0])
            lse = self.softmax(part, ClassBlock(0, chunk.num_classes))[1]
            losses[some] = lse - part.target_logits

    def _lse(self, probs: Tensor, chunk: PixelChunk, block: ClassBlock) -> Tensor:
        """Recover the log-sum-exp from prob = exp(logit - lse) at the largest, which cannot underflow."""
        largest, columns = probs.max(dim=1, keepdim=True)
        return self._logits_of(chunk, block.start + columns) - largest.log_()

    def chunk(
        self,
        embeddings: Tensor,
        target: Tensor,
        upsampling: CellUpsampling | None = None,
        unlabeled: Tensor | None = None,
    ) -> PixelChunk:
        """Prepare pixels with (p,) targets from their own e', or from the (q, D) e' at low resolution."""
        raise NotImplementedError

    def add_gradients(
        self,
        probs: Tensor,
        chunk: PixelChunk,
        block: ClassBlock,
        scale: Tensor,
        one_minus_p_target: Tensor,
        need_gradient: bool,
        weight: float,
    ) -> Tensor | None:
        """Add a tile's contribution to the gradient of the classes, and overwrite the tile.

        Args:
            probs: (p, c) from `softmax`.
            chunk: the pixels, without an upsampling and all labeled.
            block: the classes of the tile.
            scale: (p, 1) from probabilities within the tile to those of all classes, times the pixel's
                weight.
            one_minus_p_target: (p, 1) one minus the target's probability, times the pixel's weight.
            need_gradient: whether the gradient of the pixels is wanted.
            weight: one divided by what the sum of the losses is divided by.

        Returns:
            The (p, D) contribution to the gradient of e', or None.
        """
        raise NotImplementedError

    def class_gradient(self) -> Tensor:
        """Return the (C, D) gradient of the class embeddings."""
        raise NotImplementedError

    def _fill(self, logits: Tensor, chunk: PixelChunk, block: ClassBlock) -> None:
        """Write the logits of a tile, the targets' from `target_logits`."""
        raise NotImplementedError

    def _logits_of(self, chunk: PixelChunk, classes: Tensor) -> Tensor:
        """Compute the (p, 1) logits of the pixels for (p, 1) classes, one each."""
        raise NotImplementedError

    def _bias_of(self, logits: Tensor, classes: Tensor) -> Tensor:
        """Add the bias of (p, 1) classes to (p, 1) logits, in place."""
        return logits if self._bias is None else logits.add_(self._bias[classes])

    def _weights_of(self, targets: Tensor) -> Tensor | None:
        """Look up the class weights (p, 1) of (p, 1) targets."""
        return None if self._class_weights is None else self._class_weights[targets]

    def _weights(self, probs: Tensor, chunk: PixelChunk, target_probs: Tensor) -> Tensor:
        """Turn the (p, C) probabilities of a tile into the weights of the gradients, in place."""
        raise NotImplementedError

    def _accumulate_probs(self, probs: Tensor, chunk: PixelChunk, weight: float) -> None:
        """Accumulate the gradient of the bias from a tile of all classes (a hook, for distances only)."""

    def finish(self, chunk: PixelChunk, losses: Tensor, gradient: Tensor | None, weight: float) -> None:
        """Add what is the same whether tiles span all classes or some, once per chunk.

        Args:
            chunk: p pixels.
            losses: (p, 1), times the class weights.
            gradient: (q, D) of the low-resolution e', or None.
            weight: one divided by what the sum of the losses is divided by.
        """

    def bias_gradient(self) -> Tensor:
        """Return the (C,) gradient of the bias."""
        assert self.bias_sums is not None
        return self.bias_sums

    def _accumulate_tile(
        self, weights: Tensor, low_res_weights: Tensor, weight_row_sums: Tensor, weight: float
    ) -> None:
        """Accumulate row and column sums of the tile's weights (a hook, for distances only)."""

    def _finish_chunk(
        self,
        chunk: PixelChunk,
        target_probs: Tensor,
        weight_row_sums: Tensor,
        gradient: Tensor | None,
        weight: float,
    ) -> None:
        """Add the targets' own gradient term, once per chunk (a hook, for distances only)."""


def part_of(buffer: Tensor, rows: int, columns: int) -> Tensor:
    """View the beginning of a buffer as (rows, columns)."""
    return buffer.as_strided((rows, columns), (columns, 1))
