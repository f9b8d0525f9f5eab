"""Count every image alone while a model is evaluated."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pipeline.evaluation.image_counts import ImageCounts


class PerImage:
    """Count every image alone.

    Args:
        num_classes: C.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self._ids: list[int] = []
        self._rows: list[np.ndarray] = []

    def update(
        self, prediction: Tensor, target: Tensor, image_ids: tuple[int, ...], ignore: int = -1
    ) -> None:
        """Count one batch.

        Args:
            prediction: (N, H, W) train ids, int64; -1 for a class that is not evaluated.
            target: (N, H, W) train ids or `ignore`.
            image_ids: of the N images.
            ignore: marks unlabeled pixels in `target`.
        """
        for one, truth, image_id in zip(prediction, target, image_ids, strict=True):
            labeled = truth != ignore
            found, actual = one[labeled], truth[labeled]
            counts = torch.stack(
                [
                    torch.bincount(ids, minlength=self.num_classes)
                    for ids in (actual[found == actual], found[found >= 0], actual)
                ]
            )
            classes = counts.sum(0).nonzero()[:, 0]
            rows = torch.cat(
                [torch.full_like(classes, len(self._ids))[None], classes[None], counts[:, classes]]
            )
            self._rows.append(rows.cpu().numpy())
            self._ids.append(int(image_id))

    def counts(self) -> ImageCounts:
        """Return the counts of all images so far."""
        rows = np.concatenate([np.empty((5, 0), np.int64), *self._rows], axis=1)
        return ImageCounts(np.array(self._ids, np.int64), *rows)
