"""Build the whole network: backbone, decoder and head, from arguments that a checkpoint can store.

Importing this module needs torch only; building a backbone needs timm.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .backbone import LOW_STRIDE
from .decoders import DECODERS
from .embeddings import WORK_BYTES
from .heads import EmbeddingHead, SoftmaxHead

if TYPE_CHECKING:
    from .backbone.backbone import Backbone

_HEADS = ("embedding", "softmax")


@dataclass(frozen=True, kw_only=True)
class SegmenterConfig:
    """Hold everything needed to build the segmenter again, weights aside.

    Attributes:
        num_classes: C.
        backbone: timm's name of the model.
        output_stride: wanted stride of the backbone's last features.
        decoder: a name of `models.decoders.DECODERS`.
        decoder_channels: its output channels.
        head: "embedding" (the method) or "softmax" (the usual classifier).
        embedding_dim: D; unused by the softmax head.
        projection: "always" makes D channels of the decoder's by a 1x1 convolution; "if_needed" does so only
            where the decoder has another number.
        batch_norm_momentum: of the backbone's running statistics; None leaves the model's own.
        input_scale: images are resized by this before the backbone sees them.
    """

    num_classes: int
    backbone: str = "resnet50"
    output_stride: int = 16
    decoder: str = "deeplabv3plus"
    decoder_channels: int = 256
    head: Literal["embedding", "softmax"] = "embedding"
    embedding_dim: int = 16
    projection: Literal["always", "if_needed"] = "always"
    batch_norm_momentum: float | None = None
    input_scale: float = 1.0

    def to_dict(self) -> dict[str, Any]:
        """Return the arguments by name, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SegmenterConfig:
        """Make the arguments from what `to_dict` returned.

        Raises:
            ValueError: a name that is no argument, or `num_classes` missing.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        unknown = [name for name in values if name not in names]
        if unknown or "num_classes" not in values:
            problem = f"unknown: {', '.join(unknown)}" if unknown else "num_classes missing"
            raise ValueError(f"arguments of another segmenter: {problem}; allowed: {', '.join(names)}")
        return cls(**values)


CLASS_ROWS = ("head.class_table", "head.classifier.weight", "head.classifier.bias")
"""Names of the parameters that have a row for each class."""


class ParameterGroups(NamedTuple):
    """Group the trainable parameters for learning rates of their own, each with its state-dict name."""

    backbone: list[tuple[str, nn.Parameter]]
    decoder: list[tuple[str, nn.Parameter]]  # and the head's convolution
    class_embeddings: list[tuple[str, nn.Parameter]]  # empty for a softmax head


class Segmenter(nn.Module):
    """Map images to pixel embeddings or logits at stride 4, and to classes at full resolution.

    Args:
        backbone: features from stride 4 to the output stride.
        decoder: fuses them to one map at stride 4.
        head: what is learned per class.
        input_scale: factor by which images are resized first; predictions keep the images' own size.

    Raises:
        ValueError: a scale that is not positive.
    """

    def __init__(
        self,
        backbone: Backbone,
        decoder: nn.Module,
        head: EmbeddingHead | SoftmaxHead,
        *,
        input_scale: float = 1.0,
    ) -> None:
        if not 0 < input_scale < math.inf:
            raise ValueError(f"input_scale is {input_scale}; allowed: above 0")
        super().__init__()
        self.backbone = backbone
        self.decoder = decoder
        self.head = head
        self.input_scale = input_scale
        self.backbone_frozen = False

    def freeze_backbone(self) -> None:
        """Freeze the backbone: no gradients, and its statistics and dropout as in evaluation."""
        self.backbone_frozen = True
        self.backbone.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Segmenter:
        """Set the mode as `torch.nn.Module.train`, but a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self.backbone_frozen:
            self.backbone.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Compute what is compared with the classes, at stride 4 of the resized images.

        These are pixel embeddings of length 1, or the decoded features of a softmax head.

        Args:
            images: (N, 3, H, W) float in [0, 1]; mean and standard deviation are applied inside.

        Returns:
            (N, D, ceil(H/4), ceil(W/4)), H and W after resizing by `input_scale`.
        """
        return self.head(self._decoded(images))

    def predict(
        self, images: Tensor, size: tuple[int, int] | None = None, *, work_bytes: int = WORK_BYTES
    ) -> Tensor:
        """Predict the class of each pixel, in evaluation mode and without gradient, in bounded work memory.

        Args:
            images: (N, 3, H, W) float in [0, 1].
            size: height and width of the result; those of the images if None.
            work_bytes: budget of the scores held at a time.

        Returns:
            (N, *size) int64 train ids.
        """
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            # Not inference_mode: some timm models cache tensors here which a later training step would use.
            with torch.no_grad():
                height, width = size if size is not None else images.shape[-2:]
                return self.head.predict(self._decoded(images), (height, width), work_bytes=work_bytes)
        finally:
            for module, mode in modes:
                module.training = mode

    def output_size(self, size: Sequence[int]) -> tuple[int, int]:
        """Compute height and width of the output for images of this height and width."""
        height, width = (-(-side // LOW_STRIDE) for side in self._resized(size))
        return height, width

    def parameter_groups(self) -> ParameterGroups:
        """Return the parameters of backbone, decoder with the head's convolution, and class table apart."""
        groups = ParameterGroups([], [], [])
        for name, parameter in self.named_parameters():
            if name.startswith("backbone."):
                groups.backbone.append((name, parameter))
            elif name == "head.class_table":
                groups.class_embeddings.append((name, parameter))
            else:
                groups.decoder.append((name, parameter))
        return groups

    def _decoded(self, images: Tensor) -> Tensor:
        """Decode to (N, channels, ceil(H/4), ceil(W/4)); the backbone's padding is cut off again."""
        height, width = self.output_size(images.shape[-2:])
        if self.input_scale != 1:
            size = self._resized(images.shape[-2:])
            images = F.interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)
        return self.decoder(self.backbone(images))[..., :height, :width]

    def _resized(self, size: Sequence[int]) -> list[int]:
        return [resized_side(side, self.input_scale) for side in size]


def resized_side(side: int, scale: float) -> int:
    """Return a side in pixels after resizing, rounded half up, and at least 1.

    In integers only, so that a graph can be exported in which the side is not known yet.
    """
    ratio = Fraction(scale).limit_denominator(10_000)
    # never 0 where ratio >= 1/2, and a graph with a free side has no use for a comparison
    rounded = (2 * side * ratio.numerator + ratio.denominator) // (2 * ratio.denominator)
    return rounded if ratio * 2 >= 1 else max(1, rounded)


def build_segmenter(
    arguments: SegmenterConfig, *, pretrained: bool = False, weights: str | Path | None = None
) -> Segmenter:
    """Build the network; every weight is random unless the backbone's are given.

    Args:
        arguments: what to build.
        pretrained: download timm's weights of the backbone.
        weights: local safetensors file with the backbone's weights, instead.

    Raises:
        ValueError, FileNotFoundError, ConnectionError: as `Backbone`, and for arguments out of range.
    """
    if arguments.decoder not in DECODERS or arguments.head not in _HEADS:
        raise ValueError(
            f"decoder is {arguments.decoder!r}, head is {arguments.head!r}; "
            f"allowed: decoder {', '.join(DECODERS)} (each with every backbone that gives "
            "features), head 'embedding' or 'softmax'"
        )
    try:
        from .backbone.backbone import Backbone
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"a backbone needs the package {error.name!r}, which is not installed\n"
            '  fix: pip install "kiloseg[timm]"; losses, heads and searches need torch only',
            name=error.name,
        ) from error
    backbone = Backbone(
        arguments.backbone,
        output_stride=arguments.output_stride,
        pretrained=pretrained,
        weights=weights,
        batch_norm_momentum=arguments.batch_norm_momentum,
    )
    channels = arguments.decoder_channels
    decoder = DECODERS[arguments.decoder](
        backbone.channels, channels=channels, output_stride=backbone.output_stride
    )
    head: EmbeddingHead | SoftmaxHead
    if arguments.head == "embedding":
        dim = arguments.embedding_dim
        project = arguments.projection == "always" or dim != channels
        head = EmbeddingHead(channels, dim, arguments.num_classes, project=project)
    else:
        head = SoftmaxHead(channels, arguments.num_classes)
    return Segmenter(backbone, decoder, head, input_scale=arguments.input_scale)
