"""Train and predict with anybody's network and its own classifier, at memory that is flat in the classes.

    python -m examples.softmax_in_any_network

The network stays unchanged. It runs up to its last layer, a 1 x 1 convolution; that layer's weight and bias
go to `exact_cross_entropy`, which is its usual cross-entropy without the logits. Where the last layer is a
3 x 3 convolution, or the sum of two classifiers, the functions here say what to hand over instead.
`smp_networks`, `torchvision_networks` and `transformers_networks` do so for their package.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Installed by `pip install ./models` it is: from kiloseg import ...
from models import exact_cross_entropy, features_before, predict_classes

NUM_CLASSES = 2_000


class Classifier(NamedTuple):
    """What the loss and the prediction take: features (N, D, h, w), weight (C, D), bias (C,)."""

    features: Tensor
    weight: Tensor
    bias: Tensor | None


def of_1x1(network: nn.Module, layer: nn.Conv2d, images: Tensor) -> Classifier:
    """Take a last layer that is a 1 x 1 convolution: most networks."""
    return Classifier(features_before(network, layer, images), layer.weight.flatten(1), layer.bias)


def of_3x3(network: nn.Module, layer: nn.Conv2d, images: Tensor) -> Classifier:
    """Take a last k x k convolution: a 1 x 1 convolution of the k * k neighbors' channels side by side."""
    features = neighbors(features_before(network, layer, images), layer)
    return Classifier(features, layer.weight.flatten(1), layer.bias)


def neighbors(features: Tensor, layer: nn.Conv2d) -> Tensor:
    """Lay the channels of each pixel's neighbors side by side: (N, D, h, w) to (N, D * k * k, h, w)."""
    side_by_side = F.unfold(features, layer.kernel_size, padding=layer.padding)  # (N, D * k * k, h * w)
    return side_by_side.unflatten(2, features.shape[2:])


def of_lraspp(network: nn.Module, images: Tensor) -> Classifier:
    """Take torchvision's LRASPP, whose logits are the sum of two classifiers' at one resolution."""
    head, stages = network.classifier, network.backbone(images)
    high = head.cbr(stages["high"]) * head.scale(stages["high"])
    high = F.interpolate(high, size=stages["low"].shape[2:], mode="bilinear", align_corners=False)
    weight = torch.cat([head.low_classifier.weight, head.high_classifier.weight], 1).flatten(1)
    return Classifier(
        torch.cat([stages["low"], high], 1), weight, head.low_classifier.bias + head.high_classifier.bias
    )


def loss_of(taken: Classifier, target: Tensor, *, align_corners: bool = False) -> Tensor:
    """Return the network's usual cross-entropy for a target (N, H, W) at full resolution."""
    return exact_cross_entropy(
        taken.features, taken.weight, target, bias=taken.bias, similarity="dot", align_corners=align_corners
    )


def prediction_of(taken: Classifier, size: tuple[int, int], *, align_corners: bool = False) -> Tensor:
    """Return the argmax of the network's upsampled logits, (N, H, W)."""
    return predict_classes(
        taken.features, taken.weight, size, bias=taken.bias, similarity="dot", align_corners=align_corners
    )


def fit(
    network: nn.Module,
    take: Callable[[nn.Module, Tensor], Classifier],
    *,
    steps: int,
    size: int,
    align_corners: bool = False,
) -> list[float]:
    """Train a network of NUM_CLASSES classes on one random batch, predict it, and return the losses."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.003)
    images = torch.rand(2, 3, size, size)
    target = torch.randint(0, NUM_CLASSES, (2, 1, 1)).expand(2, size, size)
    losses = []
    for _ in range(steps):
        loss = loss_of(take(network, images), target, align_corners=align_corners)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    with torch.no_grad():
        taken = take(network.eval(), images)
    predicted = prediction_of(taken, (size, size), align_corners=align_corners)
    print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}, prediction {tuple(predicted.shape)}")
    return losses


def main(steps: int = 4, size: int = 64) -> list[float]:
    """Train torchvision's DeepLabV3."""
    from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

    torch.manual_seed(0)
    network = deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=NUM_CLASSES)
    return fit(
        network,
        lambda network, images: of_1x1(network, network.classifier[-1], images),
        steps=steps,
        size=size,
    )


if __name__ == "__main__":
    main()
