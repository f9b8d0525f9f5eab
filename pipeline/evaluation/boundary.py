"""Count boundary IoU: how well the outlines fit, at any number of classes.

Cheng et al., "Boundary IoU" (CVPR 2021): the IoU of the pixels of truth and of prediction that lie within a
distance of their own outline. The official code erodes one mask a class; here one maximum and one minimum
over the class ids of a window tell the same of all classes at once.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipeline.evaluation.metrics import ClassCounts

_OUTSIDE = 2**30  # no class id: an image's border is an outline, as in the official code


class BoundaryCounts:
    """Count every class's pixels near outlines, in labeled pixels.

    Args:
        num_classes: C.
        width: of the bands, as a share of the image's diagonal; 0.02 in the paper.
        device: where the counts are kept.
    """

    def __init__(self, num_classes: int, width: float, device: torch.device | str = "cpu") -> None:
        self.counts, self.width = ClassCounts(num_classes, device), width

    def update(self, prediction: Tensor, target: Tensor, ignore_index: int = -1) -> None:
        """Count one batch.

        An ignored pixel is none of any class, in the truth and in the prediction alike, so an outline
        towards ignored pixels is the same in both.

        Args:
            prediction: (N, H, W) train ids, int64.
            target: (N, H, W) train ids or `ignore_index`.
        """
        ignored = target == ignore_index
        radius = band_radius(target.shape[-2], target.shape[-1], self.width)
        prediction = prediction.masked_fill(ignored, ignore_index)
        in_prediction = near_outline(prediction, radius) & (prediction != ignore_index)
        in_target = near_outline(target, radius) & ~ignored
        hits = in_prediction & in_target & (prediction == target)
        self.counts.add(target[hits], prediction[in_prediction], target[in_target])


def band_radius(height: int, width: int, share: float) -> int:
    """Return the width of a band in pixels, at least 1: the official `round(share * diagonal)`."""
    return max(1, round(share * math.hypot(height, width)))


def near_outline(ids: Tensor, radius: int) -> Tensor:
    """Tell which pixels have another id, or the outside, within `radius` pixels (in the larger of x and y).

    Args:
        ids: (..., H, W) integers.
        radius: in pixels, at least 1.

    Returns:
        (..., H, W) bool.
    """
    ids = ids.to(torch.int32)
    highest = _window_maximum(_window_maximum(ids, radius), radius, across=True)
    lowest = -_window_maximum(_window_maximum(-ids, radius), radius, across=True)
    return highest != lowest


def _window_maximum(ids: Tensor, radius: int, *, across: bool = False) -> Tensor:
    """Return the maximum over 2 * radius + 1 pixels of a row (or of a column), in log2(radius) passes."""
    if across:
        ids = ids.transpose(-1, -2)
    length, window = ids.shape[-1], 2 * radius + 1
    maxima, covered = torch.nn.functional.pad(ids, (radius, radius), value=_OUTSIDE), 1
    while 2 * covered <= window:
        maxima = torch.maximum(maxima[..., :-covered], maxima[..., covered:])
        covered *= 2
    rest = window - covered
    result = torch.maximum(maxima[..., :length], maxima[..., rest : rest + length])
    return result.transpose(-1, -2) if across else result
