"""Turn decoded features into classes: by embeddings compared with class embeddings, or by plain logits.

`EmbeddingHead` is the paper's: D channels per pixel, L2-normalized at stride 4, and a table of one learned
vector per class, normalized at every use. `SoftmaxHead` is the baseline: C channels per pixel. Both predict
without holding the scores of all pixels and all classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .embeddings import WORK_BYTES
from .nearest import nearest_classes


class EmbeddingHead(nn.Module):
    """Project features to D normalized channels by a 1x1 convolution, and hold the class embeddings.

    Args:
        in_channels: of the decoded features.
        embedding_dim: D, the same for any number of classes.
        num_classes: C.
    """

    def __init__(self, in_channels: int, embedding_dim: int, num_classes: int) -> None:
        super().__init__()
        _check_sizes(embedding_dim=embedding_dim, num_classes=num_classes)
        self.projection = nn.Conv2d(in_channels, embedding_dim, 1)
        self.class_table = nn.Parameter(torch.empty(num_classes, embedding_dim).uniform_(-1, 1))

    @property
    def class_embeddings(self) -> Tensor:
        """Normalize the table to (C, D) float32 of length 1, differentiable, at every access."""
        return _normalize(self.class_table)

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, in_channels, h, w) to pixel embeddings (N, D, h, w), float32 of length 1 per pixel."""
        return _normalize(self.projection(features))

    @torch.no_grad()
    def predict(self, features: Tensor, size: tuple[int, int], *, work_bytes: int = WORK_BYTES) -> Tensor:
        """Predict the nearest class of each pixel.

        The embeddings of one image at a time are upsampled, bilinearly and not normalized again, as in
        training; the search then holds `work_bytes` of scores.

        Args:
            features: decoded features (N, in_channels, h, w).
            size: height and width of the result.
            work_bytes: budget of the search.

        Returns:
            (N, *size) int64 train ids.
        """
        pixel_embeddings, class_embeddings = self(features), self.class_embeddings
        maps = []
        for image in pixel_embeddings.split(1):
            upsampled = F.interpolate(image, size=size, mode="bilinear", align_corners=False)
            pixels = upsampled[0].flatten(1).T  # (H*W, D)
            maps.append(nearest_classes(pixels, class_embeddings, 1, work_bytes=work_bytes).view(size))
        return torch.stack(maps)


class SoftmaxHead(nn.Module):
    """Map features to C logits by a 1x1 convolution: the baseline, whose memory grows with the classes.

    Args:
        in_channels: of the decoded features.
        num_classes: C.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        _check_sizes(num_classes=num_classes)
        self.classifier = nn.Conv2d(in_channels, num_classes, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, in_channels, h, w) to logits (N, C, h, w)."""
        return self.classifier(features)

    @torch.no_grad()
    def predict(self, features: Tensor, size: tuple[int, int], *, work_bytes: int = WORK_BYTES) -> Tensor:
        """Predict the class of each pixel's largest upsampled logit, the lower id where several are equal.

        This is the argmax of the fully upsampled logits, without holding them: one image and one slice of the
        classes at a time, keeping the best so far.

        Args:
            features: decoded features (N, in_channels, h, w).
            size: height and width of the result.
            work_bytes: budget of the upsampled logits; at least one class is held.

        Returns:
            (N, *size) int64 train ids.
        """
        return torch.stack([self._predict_image(image, size, work_bytes) for image in features.split(1)])

    def _predict_image(self, features: Tensor, size: tuple[int, int], work_bytes: int) -> Tensor:
        weight, bias = self.classifier.weight, self.classifier.bias
        assert bias is not None
        # Four bytes per pixel and class, and a sixteenth of the pixels at stride 4 besides.
        classes = max(1, work_bytes // (5 * size[0] * size[1]))
        best = torch.full(size, -torch.inf, device=features.device)
        best_class = torch.zeros(size, dtype=torch.int64, device=features.device)
        for first in range(0, len(weight), classes):
            part = slice(first, first + classes)
            logits = F.conv2d(features, weight[part], bias[part])
            upsampled = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)[0]
            value, index = upsampled.max(dim=0)  # of equal values the first
            better = value > best
            best = torch.where(better, value.float(), best)
            best_class = torch.where(better, index + first, best_class)
        return best_class


def _normalize(vectors: Tensor) -> Tensor:
    """Normalize along dimension 1, in float32: bfloat16 is too coarse to tell many classes apart."""
    with torch.autocast(vectors.device.type, enabled=False):
        return F.normalize(vectors.float(), dim=1, eps=1e-6)


def _check_sizes(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; allowed: 1 and more")
