"""Measure how far the confidence can be trusted, and top-5 accuracy, on a fixed sample of every image.

Both need the scores of all classes, a tile of pixels x classes at a time. Of pixels that lie side by side
nearly the same is learned, so a few thousand an image are taken, and the sum over them estimates that of all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from models.embeddings import full_precision
from models.heads import EmbeddingHead, SoftmaxHead
from models.upsampling import rows_of_pixels

BINS = 15
TOP = 5
_TILE = 2**19  # scores held at a time: 2 MiB, which caches like
_ROWS = 256  # pixels of a tile, at least
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class ClassScores:
    """Compare pixels with classes as the training's loss does.

    Attributes:
        weight: (C, D) class embeddings, or a classifier's weight.
        bias: (C,) of a classifier; None for embeddings.
        similarity: "distance" or "cosine" of embeddings; a classifier has inner products.
        temperature: divides the similarity of embeddings.
    """

    weight: Tensor
    bias: Tensor | None
    similarity: str
    temperature: float

    @classmethod
    def of(cls, head: EmbeddingHead | SoftmaxHead, similarity: str, temperature: float) -> ClassScores:
        """Take the classes of a head; a classifier has neither similarity nor temperature."""
        weight = head.class_embeddings.detach().float()
        if head.bias is not None:
            return cls(weight, head.bias.detach().float(), "dot", 1.0)
        return cls(weight, None, similarity, temperature)

    def logits(self, rows: Tensor, part: slice) -> Tensor:
        """Return (p, c) logits of pixels (p, D) and of a part of the classes."""
        weight = self.weight[part]
        if self.similarity == "distance":
            squares = torch.addmm(weight.square().sum(1), rows, weight.T, alpha=-2)
            squares += rows.square().sum(1, keepdim=True)
            return squares.clamp_(min=0).sqrt_().div_(-self.temperature)
        products = rows @ weight.T
        return products.div_(self.temperature) if self.bias is None else products.add_(self.bias[part])

    def confidence_and_place(self, rows: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the largest softmax probability of each pixel, and the place of its true class, 0 the first.

        Classes whose score equals the true one's count as better.

        Args:
            rows: (P, D) float32.
            target: (P,) train ids.
        """
        confidence, places = torch.empty_like(rows[:, 0]), torch.empty_like(target)
        num_rows = max(_ROWS, _TILE // len(self.weight))
        with full_precision(rows):
            for first in range(0, len(rows), num_rows):
                part = slice(first, first + num_rows)
                confidence[part], places[part] = self._of_some(rows[part], target[part])
        return confidence, places

    def _of_some(self, rows: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        columns = max(1, _TILE // len(rows))
        true = self._true_logits(rows, target)
        best = rows.new_full((len(rows),), -torch.inf)
        total, places = torch.zeros_like(best), torch.zeros_like(target)
        for start in range(0, len(self.weight), columns):
            logits = self.logits(rows, slice(start, start + columns))
            inside = ((target >= start) & (target < start + columns)).nonzero()[:, 0]
            places += (logits >= true[:, None]).sum(1)
            places[inside] -= (logits[inside, target[inside] - start] >= true[inside]).long()
            largest = torch.maximum(best, logits.amax(1))
            total.mul_((best - largest).exp_()).add_(logits.sub_(largest[:, None]).exp_().sum(1))
            best = largest
        return total.reciprocal_(), places

    def _true_logits(self, rows: Tensor, target: Tensor) -> Tensor:
        """Return (p,) the logits of the true classes, of the same formula."""
        weight = self.weight[target]
        products = (rows * weight).sum(1)
        if self.similarity == "distance":
            squares = weight.square().sum(1) - 2 * products + rows.square().sum(1)
            return squares.clamp_(min=0).sqrt_().div_(-self.temperature)
        return products / self.temperature if self.bias is None else products + self.bias[target]


@dataclass(frozen=True)
class ConfidenceBin:
    """Hold the pixels whose confidence is in a range.

    Attributes:
        low: of the range.
        high: of the range; belongs to the next one.
        pixels: the sampled ones, each standing for as many as it was drawn from.
        confidence: their mean.
        accuracy: the share predicted right.
    """

    low: float
    high: float
    pixels: float
    confidence: float
    accuracy: float


class Calibration:
    """Count confidence and right answers by bins of confidence, and how often the truth is among the first 5.

    Args:
        scores: of the head.
        pixels_per_image: labeled pixels taken of an image, evenly spaced; None for all.
    """

    def __init__(self, scores: ClassScores, pixels_per_image: int | None) -> None:
        self.scores, self.pixels_per_image = scores, pixels_per_image
        self._sums = torch.zeros(3, BINS, dtype=torch.float64, device=scores.weight.device)
        self._among_first = torch.zeros((), dtype=torch.float64, device=scores.weight.device)

    @torch.no_grad()
    def update(self, output: Tensor, prediction: Tensor, target: Tensor, ignore_index: int = -1) -> None:
        """Count one batch.

        Args:
            output: (N, D, h, w) of the network, at its own resolution.
            prediction: (N, H, W) train ids.
            target: (N, H, W) train ids or `ignore_index`.
        """
        for one, found, truth in zip(output, prediction, target, strict=True):
            labeled = (truth.flatten() != ignore_index).nonzero()[:, 0]
            if not len(labeled):
                continue
            pixels = labeled[evenly_spaced(len(labeled), self.pixels_per_image, labeled.device)]
            rows = rows_of_pixels(one[None].float(), truth.shape, pixels)
            actual = truth.flatten()[pixels]
            confidence, places = self.scores.confidence_and_place(rows, actual)
            self._count(
                confidence, found.flatten()[pixels] == actual, places < TOP, len(labeled) / len(pixels)
            )

    def _count(self, confidence: Tensor, right: Tensor, among_first: Tensor, weight: float) -> None:
        bins = (confidence * BINS).long().clamp_(0, BINS - 1)
        values = torch.stack([torch.ones_like(confidence), confidence, right.to(confidence)]).double()
        self._sums.index_add_(1, bins, values, alpha=weight)
        self._among_first += weight * among_first.sum()

    def bins(self) -> list[ConfidenceBin]:
        """Return the bins that have pixels, in the order of the confidence."""
        return [
            ConfidenceBin(index / BINS, (index + 1) / BINS, pixels, confidence / pixels, right / pixels)
            for index, (pixels, confidence, right) in enumerate(self._sums.T.tolist())
            if pixels
        ]

    def metrics(self) -> dict[str, float]:
        """Return expected calibration error and top-5 accuracy; nothing without a pixel."""
        bins = self.bins()
        total = sum(one.pixels for one in bins)
        if not total:
            return {}
        error = sum(one.pixels * abs(one.accuracy - one.confidence) for one in bins) / total
        return {
            "calibration_error": error,
            "top5_accuracy": float(self._among_first) / total,
        }


def evenly_spaced(number: int, wanted: int | None, device: torch.device | str = "cpu") -> Tensor:
    """Choose `wanted` of so many places, one at a pseudo-random place of each of as many equal parts.

    The offsets are those of the golden ratio, so that no column of an image is met again and again.

    Returns:
        (min(wanted, number),) int64, ascending; the same at every call.
    """
    if wanted is None or wanted >= number:
        return torch.arange(number, device=device)
    steps = torch.arange(wanted, dtype=torch.float64, device=device)
    return ((steps + (steps * _GOLDEN).frac()) * (number / wanted)).long().clamp_(max=number - 1)
