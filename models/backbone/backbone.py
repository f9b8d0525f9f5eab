"""Wrap any timm model with features as a backbone that gives the levels decoders take.

The first level has stride 4, the last the output stride: the stride asked for where timm can dilate the
model, else the model's own stride, with a warning that says what would work.
"""

from __future__ import annotations

import difflib
import math
import warnings
from pathlib import Path
from typing import Any, Literal, get_args

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import LOW_STRIDE
from .weights import LoadedWeights, check_weights_reachable, load_weights

OutputStride = Literal[8, 16, 32]

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_REFUSALS = (TypeError, NotImplementedError, RuntimeError, ValueError, AssertionError)
"""What timm's models raise on an argument they do not take; VGG and GhostNet assert."""
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class OutputStrideWarning(UserWarning):
    """The backbone cannot reach the output stride that was asked for."""


class ImageSizeError(ValueError):
    """An image is larger than the only size that the backbone takes."""


class Backbone(nn.Module):
    """Compute features at several levels, fine to coarse, with a timm model without its classifier.

    Images are normalized with the mean and standard deviation that the model's weights were trained with
    (buffers, so they travel with the weights) and padded at the right and the bottom with the mean color.
    A model without features of stride 4 (a plain vision transformer) gets its first features resized to it.

    Args:
        name: timm's name of the model, with or without the tag of its weights; "hf-hub:timm/NAME" too.
        output_stride: wanted stride of the high-level features.
        pretrained: download timm's weights.
        weights: local safetensors file with timm's parameter names, instead of `pretrained`.
        batch_norm_momentum: of the running statistics (0.01 in the paper's code); None: the model's own.

    Attributes:
        output_stride: the stride reached.
        channels: of each level.
        strides: of each level, before the first is resized to stride 4.
        size_multiple: height and width are padded to multiples of this.
        least_side: smaller images are padded to this height and width, from which on the model has features.
        image_size: the only (height, width) the model takes, to which smaller images are padded; mostly None.
        loaded: what came from `weights`; None without.

    Raises:
        ValueError: unknown name, a model without usable features, `pretrained` and `weights` together, or
            weights that do not fit.
        ImageSizeError: when an image is larger than `image_size`.
        FileNotFoundError: no file at `weights`.
        ConnectionError: `pretrained` without a network.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        *,
        output_stride: int = 16,
        pretrained: bool = False,
        weights: str | Path | None = None,
        batch_norm_momentum: float | None = None,
    ) -> None:
        super().__init__()
        name = _name_in_timm(name)
        config = _pretrained_config(name)
        if pretrained and weights is not None:
            raise ValueError("pretrained and weights exclude each other: set one of the two")
        if pretrained:
            check_weights_reachable(name, config)
        self.name = name
        self.network, arguments = _create(name, output_stride, fixed_size=bool(config.fixed_input_size))
        if pretrained:
            try:
                self.network = timm.create_model(name, features_only=True, pretrained=True, **arguments)
            except OSError as error:
                raise ConnectionError(f"the weights of {name!r} could not be downloaded: {error}") from error
        self.loaded: LoadedWeights | None = None
        if weights is not None:
            self.loaded = load_weights(self.network, Path(weights), name=name)
        if batch_norm_momentum is not None:
            for module in self.network.modules():
                if isinstance(module, _BATCH_NORMS):
                    module.momentum = batch_norm_momentum

        levels: Any = self.network.feature_info
        strides: list[int] = levels.reduction()
        channels: list[int] = levels.channels()
        # The finest of the strides nearest to 4: 4 itself in most models, 16 in a plain transformer.
        self._low_index = min(range(len(strides)), key=lambda i: (abs(math.log2(strides[i] / LOW_STRIDE)), i))
        self.channels, self.strides = channels[self._low_index :], strides[self._low_index :]
        self.output_stride = strides[-1]
        self.size_multiple = math.lcm(max(strides), LOW_STRIDE)
        if self.output_stride != output_stride:
            _warn_of_stride(name, asked=output_stride, reached=self.output_stride)
        self.image_size = self._only_size(config.input_size) if config.fixed_input_size else None
        self.least_side = self._least_side(config.input_size)
        self.register_buffer("mean", torch.tensor(config.mean or _IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(config.std or _IMAGENET_STD).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute the features of (N, 3, H, W) images in [0, 1]; any H and W unless `image_size` is set.

        Returns:
            (N, channels[i], Hp / strides[i], Wp / strides[i]) each, Hp x Wp being the padded size, both
            multiples of `size_multiple`; the first resized to (Hp / 4, Wp / 4) if its stride is another.
        """
        pixels = self._pad((images - self.mean) / self.std)
        levels = [self._channels_first(level) for level in self.network(pixels)[self._low_index :]]
        size = [side // LOW_STRIDE for side in pixels.shape[-2:]]
        if list(levels[0].shape[-2:]) != size:
            levels[0] = F.interpolate(levels[0], size=size, mode="bilinear", align_corners=False)
        return levels

    def _pad(self, pixels: Tensor) -> Tensor:
        height, width = pixels.shape[-2:]
        if self.image_size is not None:
            bottom, right = self.image_size[0] - height, self.image_size[1] - width
            if bottom < 0 or right < 0:
                allowed = f"at most {self.image_size[0]}x{self.image_size[1]}"
                raise ImageSizeError(
                    f"{self.name} takes images of one size only: {height}x{width} found, {allowed} allowed; "
                    "take smaller crops or another backbone (convolutional, Swin and ViT ones take any size)"
                )
        else:
            # in this form torch.export sees that the padded sides are multiples
            bottom, right = (self._padded(side) - side for side in (height, width))
        if torch.compiler.is_exporting() or bottom or right:  # an exported graph serves all sizes
            return F.pad(pixels, (0, right, 0, bottom))
        return pixels

    def _padded(self, side: int) -> int:
        padded = (side + self.size_multiple - 1) // self.size_multiple * self.size_multiple
        if self.least_side <= self.size_multiple:
            return padded
        return torch.sym_max(padded, self.least_side)  # type: ignore[return-value]

    def _channels_first(self, level: Tensor) -> Tensor:
        # Without output_fmt timm's features are NCHW; Swin and its kin say "NHWC".
        if str(getattr(self.network, "output_fmt", "NCHW")).endswith("NHWC"):
            return level.permute(0, 3, 1, 2)
        return level

    def _least_side(self, input_size: tuple[int, int, int]) -> int:
        """Return the smallest multiple of `size_multiple` from which on the model has features.

        Only convolutions and pools that do not pad ask for more than one multiple: Inception's.
        """
        if self.image_size is not None or not any(map(_eats_borders, self.network.modules())):
            return self.size_multiple
        sides = range(self.size_multiple, max(input_size[1:]) + 1, self.size_multiple)
        refusal: BaseException | None = None
        for side in sides:
            try:
                self._levels_of_zeros(side, side)
            except _REFUSALS as error:
                refusal = error
            else:
                return side
        raise ValueError(
            f"backbone {self.name!r} has no features of images up to {sides[-1]} pixels: {refusal}\n"
            "  allowed: another backbone, such as resnet50 or convnext_tiny"
        ) from refusal

    @torch.no_grad()
    def _levels_of_zeros(self, height: int, width: int) -> list[Tensor]:
        """Return the levels of a black image, in evaluation mode."""
        was_training = self.network.training
        self.network.eval()
        try:
            return self.network(torch.zeros(1, 3, height, width))
        finally:
            self.network.train(was_training)

    def _only_size(self, input_size: tuple[int, int, int]) -> tuple[int, int] | None:
        """Return None if the model runs on a small oblong image too, else the size it was made for."""
        height, width = 2 * self.size_multiple, 3 * self.size_multiple
        try:
            levels = self._levels_of_zeros(height, width)
            expected = [height // self.output_stride, width // self.output_stride]
            free = list(self._channels_first(levels[-1]).shape[-2:]) == expected
        except _REFUSALS:
            free = False
        return None if free else (input_size[1], input_size[2])


def _name_in_timm(name: str) -> str:
    """Return timm's name of "hf-hub:timm/NAME", as the hub's pages spell it."""
    plain = name
    for opening in ("hf-hub:", "hf_hub:", "timm/"):
        plain = plain.removeprefix(opening)
    if "/" in plain or ":" in plain:
        raise ValueError(
            f"not a model of timm's own: {name!r}\n"
            "  allowed: a name of timm.list_models(), such as resnet50, or hf-hub:timm/resnet50.a1_in1k\n"
            "  fix: name the architecture in model.backbone, and give its weights as a file in model.weights"
        )
    return plain


def _eats_borders(module: nn.Module) -> bool:
    """Tell whether a convolution or pool is larger than its step and does not pad: small images vanish."""
    if not isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
        return False
    parts: Any = (module.kernel_size, module.stride, module.padding)
    sizes = [part if isinstance(part, tuple) else (part, part) for part in parts]
    return any(kernel > stride and padding == 0 for kernel, stride, padding in zip(*sizes, strict=True))


def _pretrained_config(name: str) -> Any:
    """Return timm's description of the model's weights: mean, std, input size, where they are."""
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=5, cutoff=0.5)
        raise ValueError(
            f"unknown backbone: timm {timm.__version__} has no model {name!r}\n"
            f"  allowed: {', '.join(close) or 'any name of timm.list_models()'}\n"
            "  fix: correct model.backbone; python -c 'import timm; print(timm.list_models(\"*net*\"))'"
        )
    try:
        config = timm.models.get_pretrained_cfg(name)
    except RuntimeError as error:
        architecture, _, tag = name.partition(".")
        tags = timm.list_pretrained(f"{architecture}.*")
        raise ValueError(
            f"unknown weights tag {tag!r} of backbone {architecture!r}\n"
            f"  allowed: {', '.join(tags) or 'none'}"
        ) from error
    # A few models have no description of weights at all: timm's defaults stand in.
    return config if config is not None else timm.models.PretrainedCfg(input_size=(3, 224, 224))


def _create(name: str, output_stride: int, *, fixed_size: bool) -> tuple[nn.Module, dict[str, Any]]:
    """Build the untrained feature extractor with the first arguments that timm takes; return both."""
    strides: list[dict[str, Any]] = [{"output_stride": output_stride}]
    strides += [{"output_stride": stride} for stride in (16, 32) if stride > output_stride]
    # Swin took strict_img_size before it took dynamic_img_size.
    sizes: list[dict[str, Any]] = [{"dynamic_img_size": True}, {"strict_img_size": False}, {}]
    attempts = [{**stride, **size} for stride in [*strides, {}] for size in (sizes if fixed_size else [{}])]
    refusal: BaseException | None = None
    for arguments in attempts:
        try:
            return timm.create_model(name, features_only=True, pretrained=False, **arguments), arguments
        except _REFUSALS as error:
            refusal = error
    raise ValueError(
        f"backbone {name!r} gives no features in timm {timm.__version__}: {refusal}\n"
        "  allowed: a model that timm creates with features_only=True, such as resnet50, "
        "tf_efficientnet_lite0, convnext_tiny, swin_tiny_patch4_window7_224"
    ) from refusal


def _warn_of_stride(name: str, *, asked: int, reached: int) -> None:
    if reached in get_args(OutputStride):
        advice = f"Set model.output_stride to {reached} if that is meant."
    else:
        advice = "It does so whatever model.output_stride says."
    warnings.warn(
        f"output stride {asked} asked of backbone {name!r}, {reached} reached: timm cannot dilate it, so "
        f"it runs at its own stride. {advice} Strides 8 and 16 "
        "work with ResNet, RegNet, EfficientNet, MobileNet, NFNet and ConvNeXt kinds; plain vision "
        "transformers run at their patch size.",
        OutputStrideWarning,
        stacklevel=3,
    )
