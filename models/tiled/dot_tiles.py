"""Compute tiles of inner products and their gradients: see `models.tiled.tiles`.

Label smoothing by s is that of `torch.nn.functional.cross_entropy`. With class weights v_c (one where there
are none), u_c = v_c s / C and S the sum of u, the loss of a pixel with target t is

    ((1 - s) v_t + S) nll + S logit_t - sum_c u_c logit_c.

The last sum is linear in the embedding: one product with sum_c u_c w_c, and no pass over a tile.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from ..embeddings import LossOptions
from ..upsampling import CellUpsampling
from .chunks import ClassBlock, Classes, PixelChunk
from .tiles import Tiles


class DotTiles(Tiles):
    """Compute logits e'.w + b: a tile is one matrix product, and so is its contribution to each gradient."""

    def __init__(
        self,
        classes: Classes,
        options: LossOptions,
        tile_elements: int,
        need_class_gradient: bool,
        need_bias_gradient: bool,
    ) -> None:
        super().__init__(classes, options, tile_elements, need_class_gradient, need_bias_gradient)
        self._smoothing: Smoothing | None = None
        if options.label_smoothing > 0:
            self._smoothing = Smoothing(classes, options.label_smoothing)

    def _own_buffers(self) -> None:
        super()._own_buffers()
        if self._smoothing is not None:
            self._smoothing = self._smoothing.clone_for_worker()

    def _weights_of(self, targets: Tensor) -> Tensor | None:
        weights = super()._weights_of(targets)
        if weights is None or self._smoothing is None:  # without class weights (1 - s) + S is one
            return weights
        return weights.mul_(1 - self._smoothing.share).add_(self._smoothing.total)

    @property
    def _smooth_total(self) -> float:
        """S, what label smoothing gives to all classes together."""
        return 0.0 if self._smoothing is None else self._smoothing.total

    def chunk(
        self,
        embeddings: Tensor,
        target: Tensor,
        upsampling: CellUpsampling | None = None,
        unlabeled: Tensor | None = None,
    ) -> PixelChunk:
        """Prepare pixels, see `Tiles.chunk`.

        With an upsampling, no (p, D) is formed: D may be larger than the number of classes.
        """
        targets = target[:, None]
        if upsampling is None:
            logits = self._bias_of(torch.linalg.vecdot(embeddings, self._classes[target])[:, None], targets)
        else:
            logits = embeddings.new_empty(targets.shape)  # `_fill` writes them
        return PixelChunk(
            embeddings if upsampling is None else None, embeddings, targets, len(self._classes), logits,
            upsampling, unlabeled, self._weights_of(targets),
        )  # fmt: skip

    def _fill(self, logits: Tensor, chunk: PixelChunk, block: ClassBlock) -> None:
        classes = block.of(self._classes).t()
        out = logits if chunk.upsampling is None else None
        if self._bias is None:
            products = torch.mm(chunk.low_res_embeddings, classes, out=out)
        else:  # bilinear weights sum to one, so the bias passes through the interpolation
            products = torch.addmm(block.of(self._bias), chunk.low_res_embeddings, classes, out=out)
        if chunk.upsampling is None:
            chunk.set_targets(logits, block, chunk.target_logits)
        else:  # a tile of all classes
            chunk.upsampling.upsample(products, out=logits)
            torch.gather(logits, 1, chunk.targets, out=chunk.target_logits)

    def _logits_of(self, chunk: PixelChunk, classes: Tensor) -> Tensor:
        products = torch.linalg.vecdot(chunk.scaled, self._classes[classes[:, 0]])[:, None]
        return self._bias_of(products, classes)

    def _weights(self, probs: Tensor, chunk: PixelChunk, target_probs: Tensor) -> Tensor:
        """Compute p, minus one for the targets, times the class weights; plus S for the targets."""
        of_targets = target_probs - 1
        if chunk.class_weights is not None:
            probs.mul_(chunk.class_weights)
            of_targets.mul_(chunk.class_weights)
        return probs.scatter_(1, chunk.targets, of_targets.add_(self._smooth_total))

    def _accumulate_tile(
        self, weights: Tensor, low_res_weights: Tensor, weight_row_sums: Tensor, weight: float
    ) -> None:
        if self.bias_sums is not None:  # the interpolation's transpose keeps column sums
            self.bias_sums.add_(low_res_weights.sum(dim=0), alpha=weight)

    def finish(self, chunk: PixelChunk, losses: Tensor, gradient: Tensor | None, weight: float) -> None:
        """Add label smoothing to losses and gradients, see `Tiles.finish`."""
        if self._smoothing is not None:
            self._smoothing.add(chunk, losses, gradient, weight)

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
        """Add a tile's gradients, see `Tiles.add_gradients`."""
        chunk.set_targets(probs, block, (weight * self._smooth_total - one_minus_p_target) / scale)
        if self.sums is not None:
            block.of(self.sums).addmm_(probs.t(), scale * chunk.scaled)
        if self.bias_sums is not None:
            block.of(self.bias_sums).addmv_(probs.t(), scale[:, 0])
        return scale * (probs @ block.of(self._classes)) if need_gradient else None

    def class_gradient(self) -> Tensor:
        """Return the (C, D) gradient of the class embeddings."""
        assert self.sums is not None
        return self.sums if self._smoothing is None else self._smoothing.subtract_from_classes(self.sums)

    def bias_gradient(self) -> Tensor:
        """Return the (C,) gradient of the bias."""
        gradient = super().bias_gradient()
        return gradient if self._smoothing is None else self._smoothing.subtract_from_bias(gradient)


class Smoothing:
    """Accumulate what label smoothing adds.

    Args:
        classes: embeddings, bias and weights.
        share: s, of the target.

    Attributes:
        share: s.
        total: S.
    """

    def __init__(self, classes: Classes, share: float) -> None:
        self.share, count = share, len(classes.embeddings)
        ones = classes.embeddings.new_ones(count)
        self._of_classes = (ones if classes.weights is None else classes.weights) * (share / count)  # u
        self._direction = self._of_classes @ classes.embeddings  # (D,)
        self._offset = 0.0 if classes.bias is None else float(self._of_classes @ classes.bias)
        self.total = float(self._of_classes.sum())
        self._own_sums()

    def _own_sums(self) -> None:
        self._embedding_sum = torch.zeros_like(self._direction)  # of the labeled pixels' e', times weight
        self._pixel_sum = 0.0

    def clone_for_worker(self) -> Smoothing:
        """Copy with sums of its own."""
        other = copy.copy(self)
        other._own_sums()
        return other

    def add(self, chunk: PixelChunk, losses: Tensor, gradient: Tensor | None, weight: float) -> None:
        """Add to (p, 1) losses and the (q, D) gradient, and note what the classes' gradients need."""
        mean = (chunk.low_res_embeddings @ self._direction)[:, None]  # (q, 1), at low resolution
        if chunk.upsampling is not None:
            mean = chunk.upsampling.upsample(mean)
        extra = self.total * chunk.target_logits - mean - self._offset
        pixel_weights = torch.full_like(extra, weight)
        if chunk.unlabeled is not None:
            extra.masked_fill_(chunk.unlabeled, 0)
            pixel_weights.masked_fill_(chunk.unlabeled, 0)
        losses += extra
        low_res = chunk.upsample_transpose(pixel_weights)  # (q, 1)
        if gradient is not None:
            gradient.addcmul_(low_res, self._direction, value=-1)
        self._embedding_sum.addmv_(chunk.low_res_embeddings.t(), low_res[:, 0])
        self._pixel_sum += float(pixel_weights.sum(dtype=torch.float64))

    def add_pixels(self, embeddings: Tensor, coverage: Tensor, gradient: Tensor | None) -> float:
        """Add what is linear in the embeddings to a gradient, and note what the classes' gradients need.

        Args:
            embeddings: (q, D) of pixels, or of those at low resolution.
            coverage: (q,) how often each counts: sums of bilinear weights at low resolution.
            gradient: (q, D), added to; or None.

        Returns:
            What is added to the sum of the losses.
        """
        if gradient is not None:
            gradient.addcmul_(coverage[:, None], self._direction, value=-1)
        total = embeddings.t().mv(coverage)
        count = float(coverage.sum(dtype=torch.float64))
        self._embedding_sum += total
        self._pixel_sum += count
        return -float(total @ self._direction) - count * self._offset

    def subtract_from_classes(self, sums: Tensor) -> Tensor:
        """Return the (C, D) gradient with label smoothing."""
        return torch.addcmul(sums, self._of_classes[:, None], self._embedding_sum, value=-1)

    def subtract_from_bias(self, sums: Tensor) -> Tensor:
        """Return the (C,) gradient with label smoothing."""
        return sums - self._of_classes * self._pixel_sum
