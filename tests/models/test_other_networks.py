"""Networks of other packages: loss, gradients and prediction of their own dense path, and flat memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
import torchvision
import transformers
from torch import Tensor, nn

from examples import smp_networks, softmax_in_any_network, torchvision_networks, transformers_networks
from examples.softmax_in_any_network import Classifier, loss_of, prediction_of
from models import features_before
from tests.models.allocation import extra_bytes

pytestmark = pytest.mark.slow
SIZE = 32
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


@pytest.mark.training
@pytest.mark.parametrize("name", OTHERS)
def test_loss_gradients_and_prediction_are_those_of_the_networks_own_logits(name: str) -> None:
    other, classes = OTHERS[name], 21
    torch.manual_seed(0)
    network = other.make(classes).double().eval()  # dropout would be drawn twice
    images = torch.rand(2, 3, SIZE, SIZE, dtype=torch.float64)
    target = torch.randint(-1, classes, (2, SIZE, SIZE)).masked_fill_(torch.rand(2, SIZE, SIZE) < 0.1, -100)
    target[target == -1] = -100
    logits = other.logits(network, images)
    assert logits.shape == (2, classes, SIZE, SIZE)
    expected = F.cross_entropy(logits, target)
    wanted = torch.autograd.grad(expected, list(network.parameters()), allow_unused=True)
    taken = other.take(network, images)
    loss = loss_of(taken, target, align_corners=other.align_corners)
    found = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    scale = max(float(one.abs().max()) for one in wanted if one is not None)
    assert scale > 0
    for one, right in zip(found, wanted, strict=True):
        assert (one is None) == (right is None)
        if one is not None and right is not None:
            torch.testing.assert_close(one, right, rtol=1e-4, atol=1e-6 * scale)
    with torch.no_grad():
        predicted = prediction_of(taken, (SIZE, SIZE), align_corners=other.align_corners)
    best = logits.topk(2, 1).values
    settled = best[:, 0] - best[:, 1] > 1e-9
    assert settled.float().mean() > 0.99
    assert torch.equal(predicted[settled], logits.argmax(1)[settled])


@pytest.mark.parametrize("name", OTHERS)
def test_loss_and_prediction_take_a_work_buffer_more_whatever_the_classes(name: str) -> None:
    """All logits of 4,000 classes are 62 MiB here, and the usual loss holds them twice."""
    other, size, classes = OTHERS[name], (64, 64), 4_000
    torch.manual_seed(0)
    with torch.no_grad():
        taken = other.take(other.make(classes).eval(), torch.rand(1, 3, *size))
    taken = Classifier(*(None if one is None else one.detach().requires_grad_() for one in taken))
    target = torch.randint(classes, (1, *size))

    def train() -> None:
        loss_of(taken, target, align_corners=other.align_corners).backward()

    def predict() -> None:
        with torch.no_grad():
            prediction_of(taken, size, align_corners=other.align_corners)

    train()  # the gradients that stay are made here
    buffer, weight = 36 * 2**20, 4 * taken.weight.numel()
    assert extra_bytes(train) < buffer + 3 * weight  # its gradient, summed up
    assert extra_bytes(predict) < buffer


def test_a_layer_that_is_not_called_is_named_and_nothing_stays_behind() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1))
    images = torch.rand(1, 3, 2, 2)
    assert torch.equal(features_before(network, network[1], images), network[0](images))
    with pytest.raises(ValueError, match="does not call the layer Conv2d"):
        features_before(network, nn.Conv2d(1, 1, 1), images)
    assert network(images).shape == (1, 5, 2, 2)
    assert not any(module._forward_pre_hooks for module in network.modules())


@pytest.mark.training
@pytest.mark.parametrize(
    "train",
    [
        softmax_in_any_network.main,
        partial(smp_networks.main, "Unet"),
        partial(torchvision_networks.main, "lraspp_mobilenet_v3_large"),
        partial(transformers_networks.main, "SegFormer"),
    ],
    ids=["any", "smp", "torchvision", "transformers"],
)
def test_the_examples_train(train: Callable[..., list[float]]) -> None:
    losses = train(steps=3)
    assert losses[-1] < losses[0]
