"""Networks of other packages: loss, gradients and prediction of their own dense path, and flat memory."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from examples.softmax_in_any_network import Classifier, loss_of, prediction_of
from models import features_before
from tests.models.allocation import extra_bytes

if TYPE_CHECKING:
    from tests.models.other_networks import Other

pytestmark = pytest.mark.slow
SIZE = 32
NAMES = (
    "smp DeepLabV3Plus",
    "smp Segformer",
    "smp Unet, 3 x 3",
    "torchvision deeplabv3_resnet50",
    "torchvision lraspp",
    "transformers SegFormer",
    "transformers UperNet",
)


@pytest.fixture(scope="module")
def others() -> Mapping[str, Other]:
    """The networks; their packages are imported by the worker that runs these tests alone."""
    from tests.models.other_networks import OTHERS

    assert tuple(OTHERS) == NAMES
    return OTHERS


@pytest.mark.training
@pytest.mark.parametrize("name", NAMES)
def test_loss_gradients_and_prediction_are_those_of_the_networks_own_logits(
    others: Mapping[str, Other], name: str
) -> None:
    other, classes = others[name], 21
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


@pytest.mark.parametrize("name", NAMES)
def test_loss_and_prediction_take_a_work_buffer_more_whatever_the_classes(
    others: Mapping[str, Other], name: str
) -> None:
    """All logits of 4,000 classes are 62 MiB here, and the usual loss holds them twice."""
    other, size, classes = others[name], (64, 64), 4_000
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
    ("module", "arguments"),
    [
        ("softmax_in_any_network", []),
        ("smp_networks", ["Unet"]),
        ("torchvision_networks", ["lraspp_mobilenet_v3_large"]),
        ("transformers_networks", ["SegFormer"]),
    ],
)
def test_the_examples_train(module: str, arguments: list[str]) -> None:
    losses = importlib.import_module(f"examples.{module}").main(*arguments, steps=3)
    assert losses[-1] < losses[0]
