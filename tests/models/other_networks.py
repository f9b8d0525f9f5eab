"""Networks of other packages for tests to take apart. Importing it takes the seconds of those packages."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import segmentation_models_pytorch as smp
import torch.nn.functional as F
import torchvision
import transformers
from torch import Tensor, nn

from examples import smp_networks, torchvision_networks, transformers_networks
from examples.softmax_in_any_network import Classifier

NO_WEIGHTS = {"weights": None, "weights_backbone": None}


class Other(NamedTuple):
    """A network of somebody else: how to make it, its logits at full resolution, and what we take."""

    make: Callable[[int], nn.Module]
    logits: Callable[[nn.Module, Tensor], Tensor]
    take: Callable[[nn.Module, Tensor], Classifier]
    align_corners: bool = False


def _torchvision(name: str, classes: int) -> nn.Module:
    return getattr(torchvision.models.segmentation, name)(**NO_WEIGHTS, num_classes=classes)


def _upsampled(network: nn.Module, images: Tensor) -> Tensor:
    """As the documentation of transformers does: its networks return logits at a quarter of the size."""
    return F.interpolate(network(images).logits, size=images.shape[2:], mode="bilinear", align_corners=False)


def _segformer(classes: int) -> nn.Module:
    return transformers.SegformerForSemanticSegmentation(
        transformers.SegformerConfig(
            num_labels=classes,
            hidden_sizes=[8, 16, 24, 32],
            depths=[1, 1, 1, 1],
            num_attention_heads=[1, 1, 2, 2],
            decoder_hidden_size=32,
        )
    )


def _upernet(classes: int) -> nn.Module:
    backbone = transformers.ConvNextConfig(
        hidden_sizes=[8, 12, 16, 24],
        depths=[1, 1, 1, 1],
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = transformers.UperNetConfig(
        backbone_config=backbone, num_labels=classes, hidden_size=24, use_auxiliary_head=False
    )
    return transformers.UperNetForSemanticSegmentation(config)


def _smp(name: str, **options: object) -> Callable[[int], nn.Module]:
    return lambda classes: getattr(smp, name)("resnet18", encoder_weights=None, classes=classes, **options)


def _plain(network: nn.Module, images: Tensor) -> Tensor:
    return network(images)


def _out(network: nn.Module, images: Tensor) -> Tensor:
    return network(images)["out"]


OTHERS = {
    "smp DeepLabV3Plus": Other(
        _smp("DeepLabV3Plus", decoder_channels=16), _plain, smp_networks.take, align_corners=True
    ),
    "smp Segformer": Other(
        _smp("Segformer", decoder_segmentation_channels=16), _plain, smp_networks.take, align_corners=True
    ),
    "smp Unet, 3 x 3": Other(_smp("Unet", decoder_channels=(32, 16, 16, 8, 4)), _plain, smp_networks.take),
    "torchvision deeplabv3_resnet50": Other(
        lambda classes: _torchvision("deeplabv3_resnet50", classes), _out, torchvision_networks.take
    ),
    "torchvision lraspp": Other(
        lambda classes: _torchvision("lraspp_mobilenet_v3_large", classes), _out, torchvision_networks.take
    ),
    "transformers SegFormer": Other(_segformer, _upsampled, transformers_networks.take),
    "transformers UperNet": Other(
        _upernet, lambda network, images: network(images).logits, transformers_networks.take
    ),
}
