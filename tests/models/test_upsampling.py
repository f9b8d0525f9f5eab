"""Upsampled rows, all or some of them, against torch's own interpolation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from models.upsampling import full_resolution_rows, rows_of_pixels

SIZES = [((4, 6), (13, 22)), ((3, 2), (7, 5)), ((5, 4), (3, 2)), ((1, 1), (5, 3)), ((6, 6), (6, 6))]


@pytest.mark.parametrize(("low", "full"), SIZES)
def test_rows_are_the_upsampled_map_pixel_by_pixel(low: tuple[int, int], full: tuple[int, int]) -> None:
    output = torch.randn(2, 5, *low)
    upsampled = F.interpolate(output, size=full, mode="bilinear", align_corners=False)
    rows = full_resolution_rows(output, full)
    torch.testing.assert_close(rows.view(2, *full, 5), upsampled.permute(0, 2, 3, 1))


@pytest.mark.parametrize(("low", "full"), SIZES)
def test_the_rows_of_some_pixels_are_those_of_all_with_the_same_gradient(
    low: tuple[int, int], full: tuple[int, int]
) -> None:
    output = torch.randn(2, 5, *low, dtype=torch.float64, requires_grad=True)
    pixels = torch.randperm(2 * full[0] * full[1])[:9]
    expected = full_resolution_rows(output, full)[pixels]
    found = rows_of_pixels(output, full, pixels)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    weights = torch.randn_like(expected)
    gradients = [torch.autograd.grad(rows, output, weights)[0] for rows in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-5)


def test_half_precision_becomes_single() -> None:
    output = torch.randn(1, 5, 4, 6).bfloat16()
    assert full_resolution_rows(output, (8, 12)).dtype == torch.float32
    assert rows_of_pixels(output, (8, 12), torch.arange(3)).dtype == torch.float32
