"""Upsampled rows, all or some of them, against torch's own interpolation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from models import upsampling
from models.upsampling import CellUpsampling, full_resolution_rows, rows_of_pixels, whole_factor

SIZES = [((4, 6), (13, 22)), ((3, 2), (7, 5)), ((5, 4), (3, 2)), ((1, 1), (5, 3)), ((6, 6), (6, 6))]


@pytest.mark.parametrize(("low", "full"), SIZES)
def test_rows_are_the_upsampled_map_pixel_by_pixel(low: tuple[int, int], full: tuple[int, int]) -> None:
    output = torch.randn(2, 5, *low)
    upsampled = F.interpolate(output, size=full, mode="bilinear", align_corners=False)
    rows = full_resolution_rows(output, full)
    torch.testing.assert_close(rows.view(2, *full, 5), upsampled.permute(0, 2, 3, 1))


@pytest.mark.parametrize("most", [1, 5 * 13 * 22, 3 * 5 * 13 * 22])
def test_what_a_gpu_cannot_write_at_once_is_upsampled_image_by_image(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = torch.randn(3, 5, 4, 6, requires_grad=True)
    wanted = full_resolution_rows(output, (13, 22))
    monkeypatch.setattr(upsampling, "MOST_UPSAMPLED", most)
    found = full_resolution_rows(output, (13, 22))
    assert torch.equal(found, wanted)
    weights = torch.randn_like(found)
    gradients = [torch.autograd.grad(rows, output, weights)[0] for rows in (found, wanted)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(("low", "full"), SIZES)
def test_the_rows_of_some_pixels_are_those_of_all_with_the_same_gradient(
    low: tuple[int, int], full: tuple[int, int]
) -> None:
    output = torch.randn(2, 5, *low, dtype=torch.float64, requires_grad=True)
    pixels = torch.randperm(2 * full[0] * full[1])[:9]
    expected = full_resolution_rows(output, full)[pixels]
    found = rows_of_pixels(output, full, pixels)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(expected)
    gradients = [torch.autograd.grad(rows, output, weights)[0] for rows in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_half_precision_becomes_single() -> None:
    output = torch.randn(1, 5, 4, 6).bfloat16()
    assert full_resolution_rows(output, (8, 12)).dtype == torch.float32
    assert rows_of_pixels(output, (8, 12), torch.arange(3)).dtype == torch.float32


@pytest.mark.parametrize("factor", [2, 3, 4, 8])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 5), (4, 3)])
def test_the_cells_of_a_padded_map_hold_its_upsampled_pixels(factor: int, height: int, width: int) -> None:
    output = torch.randn(1, 5, height, width, dtype=torch.float64)
    size = factor * height, factor * width
    upsampled = F.interpolate(output, size=size, mode="bilinear", align_corners=False)
    padded = F.pad(output, (1, 1, 1, 1), mode="replicate")[0].permute(1, 2, 0).flatten(0, 1)
    cells = CellUpsampling(factor, (height + 1, width + 1), output)
    by_place = cells.upsample(padded).view(factor, factor, height + 1, width + 1, 5)
    image = by_place.permute(2, 0, 3, 1, 4).reshape((height + 1) * factor, (width + 1) * factor, 5)
    first = factor - factor // 2
    found = image[first : first + size[0], first : first + size[1]]
    torch.testing.assert_close(found, upsampled[0].permute(1, 2, 0))


def test_the_transpose_is_the_transpose_and_a_buffer_can_be_given() -> None:
    cells = CellUpsampling(4, (2, 3), torch.zeros((), dtype=torch.float64))
    low, full = (torch.randn(rows, 5, dtype=torch.float64) for rows in (12, 96))
    upsampled, transposed = cells.upsample(low), cells.upsample_transpose(full)
    assert (upsampled.shape, transposed.shape) == (full.shape, low.shape)
    torch.testing.assert_close((upsampled * full).sum(), (low * transposed).sum())
    buffer = torch.empty_like(full)
    assert cells.upsample(low, out=buffer).data_ptr() == buffer.data_ptr()
    assert torch.equal(buffer, upsampled)


def test_a_whole_factor_is_that_of_both_sides_or_none() -> None:
    assert whole_factor((3, 5), (12, 20)) == 4
    assert whole_factor((3, 5), (3, 5)) == 1
    assert whole_factor((3, 5), (12, 19)) is None
    assert whole_factor((3, 5), (12, 15)) is None
    assert whole_factor((3, 5), (2, 2)) is None
    assert whole_factor((0, 5), (0, 20)) is None
