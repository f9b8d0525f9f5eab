"""Train networks of segmentation_models_pytorch, unchanged, at memory that is flat in the classes.

    python -m examples.smp_networks

Their upsampling aligns corners, so the loss and the prediction are told to. DeepLabV3, DeepLabV3Plus, FPN,
Segformer and UPerNet end in a 1 x 1 convolution; Unet, UnetPlusPlus, MAnet, PAN and PSPNet in a 3 x 3 one.
"""

from __future__ import annotations

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

from examples.softmax_in_any_network import NUM_CLASSES, Classifier, fit, of_1x1, of_3x3

NETWORKS = {"DeepLabV3Plus": smp.DeepLabV3Plus, "Segformer": smp.Segformer, "Unet": smp.Unet}


def take(network: nn.Module, images: Tensor) -> Classifier:
    """Take the features and the last layer of any of their networks."""
    layer = network.segmentation_head[0]
    return (of_1x1 if layer.kernel_size == (1, 1) else of_3x3)(network, layer, images)


def main(name: str = "DeepLabV3Plus", steps: int = 3, size: int = 64) -> list[float]:
    """Train one of NETWORKS on one random batch, and return the losses."""
    torch.manual_seed(0)
    network = NETWORKS[name]("resnet18", encoder_weights=None, classes=NUM_CLASSES)
    return fit(network, take, steps=steps, size=size, align_corners=True)


if __name__ == "__main__":
    for each in NETWORKS:
        main(each)
