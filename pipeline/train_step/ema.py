"""Keep an exponential moving average (EMA) of the model's weights.

With `train.ema`, validation and the best checkpoint use it. Each update moves the average by
1 - min(decay, (1 + step) / (10 + step)) of the difference; this warm-up forgets the random initial weights.
The factor depends on the step alone, so only the averages need be saved to resume.

`timm.utils.ModelEmaV3` has another warm-up formula; torch's `AveragedModel` copies at its first update and
saves a counter of its own. So neither gives these values.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from models.segmenter import Segmenter


class ModelEma:
    """Hold a second segmenter whose weights and batch-norm statistics are averages of the trained one's.

    Args:
        segmenter: the trained one, on its device. Its tensors must stay the same objects.
        decay: share of the old average that a step keeps, above 0 and below 1.

    Attributes:
        segmenter: the averaged network, in evaluation mode and without gradients.
    """

    def __init__(self, segmenter: Segmenter, decay: float) -> None:
        self.decay = decay
        self.segmenter = copy.deepcopy(segmenter).requires_grad_(False).eval()
        followed, averages = segmenter.state_dict(), self.segmenter.state_dict()
        floats = [name for name, tensor in followed.items() if tensor.is_floating_point()]
        self._averages: list[Tensor] = [averages[name] for name in floats]
        self._followed: list[Tensor] = [followed[name] for name in floats]
        self._counts = [(averages[name], followed[name]) for name in followed if name not in floats]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the trained weights after the 0-based `step`."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averages, self._followed, 1 - decay)
        for average, followed in self._counts:  # batches seen by batch norm
            average.copy_(followed)
