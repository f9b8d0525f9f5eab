"""Train networks of torchvision, unchanged, at memory that is flat in the classes.

    python -m examples.torchvision_networks

DeepLabV3 and FCN end in a 1 x 1 convolution. LRASPP adds the logits of two, at one resolution.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models import segmentation

from examples.softmax_in_any_network import NUM_CLASSES, Classifier, fit, of_1x1, of_lraspp

NETWORKS = {
    "deeplabv3_resnet50": segmentation.deeplabv3_resnet50,
    "lraspp_mobilenet_v3_large": segmentation.lraspp_mobilenet_v3_large,
}


def take(network: nn.Module, images: Tensor) -> Classifier:
    """Take the features and the last layers of DeepLabV3, FCN or LRASPP."""
    if isinstance(network, segmentation.LRASPP):
        return of_lraspp(network, images)
    return of_1x1(network, network.classifier[-1], images)


def main(name: str = "lraspp_mobilenet_v3_large", steps: int = 3, size: int = 64) -> list[float]:
    """Train one of NETWORKS on one random batch, and return the losses."""
    torch.manual_seed(0)
    network = NETWORKS[name](weights=None, weights_backbone=None, num_classes=NUM_CLASSES)
    return fit(network, take, steps=steps, size=size)


if __name__ == "__main__":
    for each in NETWORKS:
        main(each)
