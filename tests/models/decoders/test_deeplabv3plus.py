"""The DeepLabV3+ decoder: the reference's layers, at stride 4, with a batch of one too."""

import pytest
import torch
from torch import nn

from models.decoders.blocks import convolution, separable_convolution
from models.decoders.deeplabv3plus import ASPP, DeepLabV3PlusDecoder


@pytest.mark.parametrize(
    ("output_stride", "rates"),
    [(8, (12, 24, 36)), (16, (6, 12, 18)), (32, (3, 6, 9)), (14, (6, 12, 18)), (64, (3, 6, 9))],
)
def test_rates_follow_the_output_stride(output_stride, rates):
    decoder = DeepLabV3PlusDecoder((8, 16), output_stride=output_stride, channels=8)
    dilations = [m.dilation[0] for m in decoder.aspp.branches.modules() if isinstance(m, nn.Conv2d)]
    assert dilations == [1, *rates]


def test_layers_have_the_sizes_of_the_reference():
    decoder = DeepLabV3PlusDecoder((24, 320), output_stride=16)
    shapes = [tuple(m.weight.shape) for m in (decoder.low[0], decoder.fuse[0], decoder.aspp.fuse[0][0])]
    assert shapes == [(48, 24, 1, 1), (256, 304, 3, 3), (256, 1280, 1, 1)]


def test_separable_convolutions_take_the_place_of_every_3x3_and_equal_them_where_they_can():
    decoder = DeepLabV3PlusDecoder((24, 320), output_stride=16, separable=True)
    kernels = [m for m in decoder.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert [(m.groups, m.dilation[0]) for m in kernels] == [(320, 6), (320, 12), (320, 18), (304, 1)]
    dense, separable = convolution(3, 4, 3, dilation=2), separable_convolution(3, 4, 3, dilation=2)
    with torch.no_grad():  # a dense kernel that is the product of the two
        dense[0].weight.copy_(separable[1].weight * separable[0].weight[:, 0])
    images = torch.rand(2, 3, 9, 8)
    torch.testing.assert_close(separable.eval()(images), dense.eval()(images))


@pytest.mark.parametrize("channels", [256, 16])
@pytest.mark.parametrize("size", [(24, 32), (25, 33), (4, 4)])
def test_the_output_has_the_low_features_size_and_the_asked_channels(channels, size):
    decoder = DeepLabV3PlusDecoder((5, 7), output_stride=16, channels=channels)
    high = torch.rand(2, 7, -(-size[0] // 4), -(-size[1] // 4))
    assert decoder([torch.rand(2, 5, *size), high]).shape == (2, channels, *size)


def test_image_pooling_trains_on_a_batch_of_one():
    aspp = ASPP(7, 8, (6, 12, 18)).train()
    features = torch.rand(1, 7, 2, 3, requires_grad=True)
    aspp(features).square().sum().backward()
    assert all(parameter.grad is not None for parameter in aspp.parameters())
    assert features.grad.abs().sum() > 0


def test_image_pooling_sees_the_whole_map():
    """A far corner, beyond every dilated kernel, changes the output everywhere."""
    aspp = ASPP(3, 8, (1, 2, 3), dropout=0.0).eval()
    nn.init.constant_(aspp.image_pooling[1].bias, 1.0)
    features = torch.rand(1, 3, 20, 20)
    changed = features.clone()
    changed[..., 19, 19] += 10
    with torch.no_grad():
        assert not torch.equal(aspp(features)[..., 0, 0], aspp(changed)[..., 0, 0])
        for branch in aspp.branches:
            assert torch.equal(branch(features)[..., 0, 0], branch(changed)[..., 0, 0])


def test_both_levels_reach_the_output():
    decoder = DeepLabV3PlusDecoder((5, 7), output_stride=16, channels=8)
    low, high = torch.rand(2, 5, 8, 8, requires_grad=True), torch.rand(2, 7, 2, 2, requires_grad=True)
    decoder([low, high]).square().sum().backward()
    assert low.grad.abs().sum() > 0
    assert high.grad.abs().sum() > 0


def test_channels_last_stays_channels_last():
    decoder = DeepLabV3PlusDecoder((5, 7), output_stride=16, channels=8).to(memory_format=torch.channels_last)
    low, high = (
        torch.rand(2, c, s, s).contiguous(memory_format=torch.channels_last) for c, s in ((5, 8), (7, 2))
    )
    assert decoder([low, high]).is_contiguous(memory_format=torch.channels_last)
