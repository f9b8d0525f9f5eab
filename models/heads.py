"""Turn decoded features into what is compared with the classes, and hold the classes' side of it.

`EmbeddingHead` is the paper's: D channels per pixel, L2-normalized at stride 4, and a table of one learned
vector per class, normalized at every use. Its convolution to D channels can be left out where the decoder has
as many: the decoder's features are then compared directly, as by a classifier. `SoftmaxHead` is the usual
classifier: the features are compared as they are with the rows of a 1x1 convolution's weight, and its bias is
added. Neither forms the scores of all pixels and all classes: the losses of `losses` and `predict_classes` do
that in tiles.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .embeddings import WORK_BYTES
from .nearest import predict_classes
from .normalize import unit_length


class EmbeddingHead(nn.Module):
    """Project features to D normalized channels by a 1x1 convolution, and hold the class embeddings.

    Args:
        in_channels: of the decoded features.
        embedding_dim: D, the same for any number of classes.
        num_classes: C.
        project: False leaves the convolution out; D is then `in_channels`.

    Raises:
        ValueError: a size below 1, or no projection and D other than `in_channels`.
    """

    bias: None = None
    """No class has an advantage."""
    similarity: Literal["distance", "dot"] = "distance"
    """By which a pixel's class is found."""

    def __init__(
        self, in_channels: int, embedding_dim: int, num_classes: int, *, project: bool = True
    ) -> None:
        super().__init__()
        _check_sizes(embedding_dim=embedding_dim, num_classes=num_classes)
        if not project and embedding_dim != in_channels:
            raise ValueError(
                f"embedding_dim is {embedding_dim}, in_channels {in_channels}, and project is False; "
                "without a projection both must be equal"
            )
        self.projection = nn.Conv2d(in_channels, embedding_dim, 1) if project else nn.Identity()
        rows = torch.empty(num_classes, embedding_dim).uniform_(-1, 1)
        # Of length 1, other than in the paper: a step of SGD turns a row of length L by 1 / L^2 of what it
        # turns this one. Uniform rows are sqrt(D / 3) long: at D = 64 they learn 21 times as slowly.
        self.class_table = nn.Parameter(F.normalize(rows, dim=1))

    @property
    def class_embeddings(self) -> Tensor:
        """Normalize the table to (C, D) float32 of length 1, differentiable, at every access."""
        return unit_length(self.class_table)

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, in_channels, h, w) to pixel embeddings (N, D, h, w), float32 of length 1 per pixel."""
        return unit_length(self.projection(features))

    @torch.no_grad()
    def predict(self, features: Tensor, size: tuple[int, int], *, work_bytes: int = WORK_BYTES) -> Tensor:
        """Predict the nearest class of each pixel.

        The embeddings are upsampled bilinearly and not normalized again, as in training.

        Args:
            features: decoded features (N, in_channels, h, w).
            size: height and width of the result.
            work_bytes: size of the work buffer of the search.

        Returns:
            (N, *size) int64 train ids.
        """
        return find_classes(self, self(features), size, work_bytes=work_bytes)


class SoftmaxHead(nn.Module):
    """Compare features with the rows of a linear classifier: the usual head, whose logits need not exist.

    Args:
        in_channels: D, of the decoded features.
        num_classes: C.
    """

    similarity: Literal["distance", "dot"] = "dot"
    """By which a pixel's class is found."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        _check_sizes(num_classes=num_classes)
        self.classifier = nn.Conv2d(in_channels, num_classes, 1)

    @property
    def class_embeddings(self) -> Tensor:
        """Return the weight of the classifier, (C, D)."""
        return self.classifier.weight.flatten(1)

    @property
    def bias(self) -> Tensor:
        """Return the bias of the classifier, (C,)."""
        assert self.classifier.bias is not None
        return self.classifier.bias

    def forward(self, features: Tensor) -> Tensor:
        """Return the features (N, D, h, w) as they are: they are compared with `class_embeddings`."""
        return features

    def logits(self, features: Tensor) -> Tensor:
        """Map (N, D, h, w) to all logits (N, C, h, w), whose memory grows with the classes.

        They have the dtype of the features, also outside autocast: in bf16 weight and bias are rounded to it.
        """
        weight, bias = self.classifier.weight.to(features.dtype), self.bias.to(features.dtype)
        return F.conv2d(features, weight, bias)

    @torch.no_grad()
    def predict(self, features: Tensor, size: tuple[int, int], *, work_bytes: int = WORK_BYTES) -> Tensor:
        """Predict the class of each pixel's largest upsampled logit.

        Args:
            features: decoded features (N, D, h, w).
            size: height and width of the result.
            work_bytes: size of the work buffer of the search.

        Returns:
            (N, *size) int64 train ids.
        """
        return find_classes(self, self(features), size, work_bytes=work_bytes)


@torch.no_grad()
def find_classes(
    head: EmbeddingHead | SoftmaxHead,
    output: Tensor,
    size: tuple[int, int],
    *,
    work_bytes: int = WORK_BYTES,
) -> Tensor:
    """Find the class of each pixel from a head's output, for those who need the output too.

    Args:
        head: whose classes are searched.
        output: (N, D, h, w) that the head, or a whole `Segmenter`, gave.
        size: height and width of the result.
        work_bytes: size of the work buffer of the search.

    Returns:
        (N, *size) int64 train ids.
    """
    return predict_classes(
        output,
        head.class_embeddings,
        size,
        bias=head.bias,
        similarity=head.similarity,
        work_bytes=work_bytes,
    )


def _check_sizes(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; allowed: 1 and more")
