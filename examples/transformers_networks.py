"""Train networks of transformers, unchanged, at memory that is flat in the classes.

    python -m examples.transformers_networks

SegFormer and UperNet end in a 1 x 1 convolution. Here they are built from a config; one that was loaded with
`from_pretrained` is taken in the same way.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import (
    ConvNextConfig,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from examples.softmax_in_any_network import NUM_CLASSES, Classifier, fit, of_1x1


def segformer(classes: int) -> nn.Module:
    """Build SegFormer-B0."""
    return SegformerForSemanticSegmentation(SegformerConfig(num_labels=classes))


def upernet(classes: int) -> nn.Module:
    """Build UperNet on ConvNeXt-T."""
    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = ConvNextConfig(hidden_sizes=[96, 192, 384, 768], out_features=stages)
    config = UperNetConfig(backbone_config=backbone, num_labels=classes, use_auxiliary_head=False)
    return UperNetForSemanticSegmentation(config)


NETWORKS = {"SegFormer": segformer, "UperNet": upernet}


def take(network: nn.Module, images: Tensor) -> Classifier:
    """Take the features and the last layer of either."""
    return of_1x1(network, network.decode_head.classifier, images)


def main(name: str = "SegFormer", steps: int = 3, size: int = 64) -> list[float]:
    """Train one of NETWORKS on one random batch, and return the losses."""
    torch.manual_seed(0)
    return fit(NETWORKS[name](NUM_CLASSES), take, steps=steps, size=size)


if __name__ == "__main__":
    for each in NETWORKS:
        main(each)
