"""What every decoder keeps to, made by its name, and the parts of the pyramids and of the linear one."""

from typing import get_args

import pytest
import torch

from models.decoders import DECODERS, FPNDecoder, LinearDecoder, UPerNetDecoder
from models.decoders.upernet import POOLED_SIZES, PyramidPooling
from pipeline.config.schema import ModelSettings

CHANNELS = (5, 6, 7, 9)
PYRAMIDS = {
    "regular": (24, 12, 6, 3),
    "odd": (25, 13, 7, 4),
    "dilated": (24, 12, 6, 6),
    "plain": (24, 6, 6, 6),
}


def pyramid(sizes: tuple[int, ...]) -> list[torch.Tensor]:
    return [torch.rand(2, c, s, s + 1, requires_grad=True) for c, s in zip(CHANNELS, sizes, strict=True)]


@pytest.mark.parametrize("sizes", PYRAMIDS.values(), ids=PYRAMIDS)
@pytest.mark.parametrize("kind", [FPNDecoder, UPerNetDecoder])
def test_every_level_reaches_the_output_at_the_size_of_the_finest(kind, sizes):
    levels, decoder = pyramid(sizes), kind(CHANNELS, channels=8)
    output = decoder(levels)
    assert output.shape == (2, 8, sizes[0], sizes[0] + 1)
    output.square().sum().backward()
    assert all(level.grad.abs().sum() > 0 for level in levels)
    assert all(parameter.grad is not None for parameter in decoder.parameters())


def test_a_pyramid_of_one_level_is_no_special_case():
    for kind in (FPNDecoder, UPerNetDecoder):
        assert kind((5,), channels=8)([torch.rand(2, 5, 9, 9)]).shape == (2, 8, 9, 9)


def test_the_linear_decoder_is_linear_in_the_coarsest_features_and_blind_to_the_rest():
    decoder = LinearDecoder((5, 7), channels=4).eval()
    low, first, second = torch.rand(1, 5, 12, 12), torch.rand(1, 7, 3, 3), torch.rand(1, 7, 3, 3)
    mixed = decoder([low, 0.25 * first + 0.75 * second])
    expected = 0.25 * decoder([low, first]) + 0.75 * decoder([torch.rand_like(low), second])
    torch.testing.assert_close(mixed, expected)


def test_pyramid_pooling_sees_the_means_over_its_grids():
    pooling = PyramidPooling(3, 4).eval()
    features = torch.rand(1, 3, 12, 12)
    for size, grid in zip(POOLED_SIZES, pooling.grids, strict=True):
        cell = 12 // size
        means = features.unfold(2, cell, cell).unfold(3, cell, cell).mean(dim=(-1, -2))
        torch.testing.assert_close(grid[0](features), means)
    assert pooling.train()(torch.rand(1, 3, 2, 3)).shape == (1, 4, 2, 3)  # smaller than a grid, one image


@pytest.mark.parametrize("name", DECODERS)
def test_every_decoder_is_made_by_the_same_arguments_and_gives_one_map_at_stride_4(name):
    decoder = DECODERS[name](CHANNELS, channels=8, output_stride=16).eval()
    assert decoder.channels == 8
    assert decoder(pyramid((24, 12, 6, 6))).shape == (2, 8, 24, 25)


def test_the_settings_know_every_decoder():
    assert get_args(ModelSettings.model_fields["decoder"].annotation) == tuple(DECODERS)
