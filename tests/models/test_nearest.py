"""The nearest-class search against brute force."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.nearest import nearest_classes


def brute_force_similarities(pixels: Tensor, classes: Tensor, similarity: str) -> Tensor:
    pixels, classes = pixels.double(), classes.double()
    if similarity == "cosine":
        return torch.stack([(classes * pixel).sum(dim=1) for pixel in pixels])
    return torch.stack([-(classes - pixel).square().sum(dim=1).sqrt() for pixel in pixels])


@settings(max_examples=30, deadline=None)
@given(
    num_pixels=st.integers(1, 40),
    num_classes=st.integers(1, 300),
    dim=st.integers(1, 20),
    wanted=st.integers(1, 300),
    work_bytes=st.sampled_from([1, 5_000, 50_000, 2**25]),
    similarity=st.sampled_from(["distance", "cosine"]),
)
def test_it_finds_what_brute_force_finds(num_pixels, num_classes, dim, wanted, work_bytes, similarity):
    generator = torch.Generator().manual_seed(num_pixels + 100 * num_classes)
    pixels = torch.randn(num_pixels, dim, generator=generator, dtype=torch.float64)
    classes = torch.randn(num_classes, dim, generator=generator, dtype=torch.float64)
    k = min(wanted, num_classes)
    found = nearest_classes(pixels, classes, k, similarity=similarity, work_bytes=work_bytes)
    expected = brute_force_similarities(pixels, classes, similarity).topk(k, dim=1)
    similarities = brute_force_similarities(pixels, classes, similarity).gather(1, found)
    torch.testing.assert_close(similarities, expected.values)  # ids may differ where similarities are equal
    assert all(len(set(row)) == k for row in found.tolist())


@pytest.mark.usefixtures("each_implementation")
def test_equally_near_classes_come_in_the_order_of_their_ids():
    classes = torch.tensor([[3.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    found = nearest_classes(torch.tensor([[1.0, 0.0]]), classes, 3)
    assert found.tolist() == [[1, 3, 4]]


@pytest.mark.usefixtures("each_implementation")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_inputs_are_compared_in_float32_even_under_autocast(dtype):
    pixels = F.normalize(torch.randn(200, 16), dim=1).to(dtype)
    classes = F.normalize(torch.randn(500, 16), dim=1).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = nearest_classes(pixels, classes, 1)
    best = brute_force_similarities(pixels, classes, "distance")
    torch.testing.assert_close(best.gather(1, found), best.max(dim=1, keepdim=True).values, rtol=0, atol=1e-6)


def test_it_has_no_gradient_and_gives_int64():
    pixels = torch.randn(3, 4, requires_grad=True)
    found = nearest_classes(pixels, torch.randn(5, 4, requires_grad=True), 2)
    assert found.dtype == torch.int64
    assert not found.requires_grad


@pytest.mark.parametrize("k", [0, 6, -1])
def test_k_outside_the_classes_is_refused(k):
    with pytest.raises(ValueError, match=rf"k is {k}; allowed are 1 to 5"):
        nearest_classes(torch.randn(3, 4), torch.randn(5, 4), k)


@pytest.mark.usefixtures("each_implementation")
def test_no_pixels_have_no_neighbors():
    assert nearest_classes(torch.zeros(0, 4), torch.randn(5, 4), 2).shape == (0, 2)


@pytest.mark.usefixtures("each_implementation")
@pytest.mark.parametrize("similarity", ["distance", "cosine"])
@pytest.mark.parametrize(("num_classes", "k"), [(1, 1), (130, 1), (1284, 1), (300, 8), (700, 64), (40, 40)])
def test_in_float32_it_finds_classes_as_near_as_brute_force(num_classes, k, similarity):
    generator = torch.Generator().manual_seed(num_classes)
    pixels = F.normalize(torch.randn(333, 9, generator=generator), dim=1)
    classes = F.normalize(torch.randn(num_classes, 9, generator=generator), dim=1)
    found = nearest_classes(pixels, classes, k, similarity=similarity)
    similarities = brute_force_similarities(pixels, classes, similarity)
    expected = similarities.topk(k, dim=1).values
    torch.testing.assert_close(similarities.gather(1, found), expected, rtol=0, atol=1e-5)
    assert all(len(set(row)) == k for row in found.tolist())


@pytest.mark.usefixtures("each_implementation")
@pytest.mark.parametrize("k", [1, 3])
def test_pixels_that_are_not_numbers_get_classes_that_exist(k):
    found = nearest_classes(torch.full((4, 3), torch.nan), torch.randn(50, 3), k)
    assert 0 <= found.min() <= found.max() < 50
    assert all(len(set(row)) == k for row in found.tolist())
