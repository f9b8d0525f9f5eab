"""The class of every pixel from anybody's last layer, held to the argmax of upsampled logits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models import knn_cross_entropy, nearest_classes, predict_classes, sampled_cross_entropy


def scores_of(
    features: Tensor, weight: Tensor, bias: Tensor | None, size: tuple[int, int], similarity: str, align: bool
) -> Tensor:
    """(N, C, H, W), larger for a better class."""
    full = F.interpolate(features, size=size, mode="bilinear", align_corners=align)
    if similarity == "distance":
        rows = full.movedim(1, -1).flatten(0, 2)
        distances = torch.cdist(rows, weight, compute_mode="donot_use_mm_for_euclid_dist")
        return -distances.view(len(full), *size, -1).movedim(-1, 1)
    return F.conv2d(full, weight[:, :, None, None], bias)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    classes=st.integers(1, 200),
    dim=st.integers(1, 8),
    low=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    factor=st.integers(1, 5),
    extra=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    align=st.booleans(),
    similarity=st.sampled_from(["distance", "dot", "dot with bias"]),
    work_bytes=st.sampled_from([500, 20_000, 2**23]),
    seed=st.integers(0, 3),
)
def test_it_is_the_argmax_of_upsampled_scores(
    classes: int,
    dim: int,
    low: tuple[int, int],
    factor: int,
    extra: tuple[int, int],
    align: bool,
    similarity: str,
    work_bytes: int,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(2, dim, *low, generator=generator, dtype=torch.float64)
    weight = torch.randn(classes, dim, generator=generator, dtype=torch.float64)
    bias = torch.randn(classes, generator=generator, dtype=torch.float64) if "bias" in similarity else None
    kind = similarity.split()[0]
    size = (low[0] * factor + extra[0], low[1] * factor + extra[1])
    found = predict_classes(
        features, weight, size, bias=bias, similarity=kind, align_corners=align, work_bytes=work_bytes
    )
    scores = scores_of(features, weight, bias, size, kind, align)
    assert found.shape == (2, *size)
    best = scores.amax(dim=1)
    chosen = scores.gather(1, found[:, None])[:, 0]
    torch.testing.assert_close(chosen, best, rtol=1e-9, atol=1e-9)  # the same but for ties


@pytest.mark.usefixtures("each_implementation")
@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("similarity", ["distance", "dot"])
@pytest.mark.parametrize("size", [(28, 20), (17, 13), (7, 5), (4, 3)])
def test_in_float32_classes_are_as_good_as_the_best(
    size: tuple[int, int], similarity: str, align: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 6, 7, 5, generator=generator)
    weight = torch.randn(150, 6, generator=generator)
    bias = torch.randn(150, generator=generator) if similarity == "dot" else None
    found = predict_classes(features, weight, size, bias=bias, similarity=similarity, align_corners=align)
    scores = scores_of(
        features.double(), weight.double(), None if bias is None else bias.double(), size, similarity, align
    )
    chosen = scores.gather(1, found[:, None])[:, 0]
    torch.testing.assert_close(chosen, scores.amax(dim=1), rtol=0, atol=1e-5)


@pytest.mark.usefixtures("each_implementation")
def test_a_thousand_classes_in_float32_are_those_of_the_dense_way() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 64, 12, 15, generator=generator)
    classifier = torch.nn.Conv2d(64, 1284, 1)
    dense = F.interpolate(classifier(features), size=(48, 60), mode="bilinear").argmax(dim=1)
    found = predict_classes(features, classifier.weight, (48, 60), bias=classifier.bias, similarity="dot")
    assert (found == dense).float().mean() > 0.999


@pytest.mark.usefixtures("each_implementation")
def test_pixels_that_are_not_numbers_get_a_class_that_exists() -> None:
    features = torch.full((1, 4, 3, 3), torch.nan)
    found = predict_classes(features, torch.randn(70, 4), (12, 12), similarity="dot")
    assert 0 <= found.min() <= found.max() < 70


def test_a_search_and_its_losses_take_the_bias_of_inner_products() -> None:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(50, 6, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(30, 6, generator=generator, dtype=torch.float64).requires_grad_()
    bias = (3 * torch.randn(30, generator=generator, dtype=torch.float64)).requires_grad_()
    target = torch.randint(30, (50,), generator=generator)
    logits = pixels @ weight.t() + bias
    found = nearest_classes(pixels, weight, 5, bias=bias, similarity="dot")
    torch.testing.assert_close(found, logits.topk(5, dim=1).indices)

    whole = F.cross_entropy(logits, target)
    for loss in (
        knn_cross_entropy(pixels, weight, target, bias=bias, similarity="dot", num_negatives=29),
        sampled_cross_entropy(pixels, weight, target, bias=bias, similarity="dot", num_negatives=29),
    ):
        torch.testing.assert_close(loss, whole)
        for ours, theirs in zip(
            torch.autograd.grad(loss, [pixels, weight, bias]),
            torch.autograd.grad(whole, [pixels, weight, bias], retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("temperature", [0.1, 2.0])
def test_the_nearest_of_a_loss_are_those_of_its_logits(temperature: float) -> None:
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    weight = torch.randn(30, 6, generator=generator, dtype=torch.float64)
    bias = torch.randn(30, generator=generator, dtype=torch.float64)
    target = torch.randint(30, (40,), generator=generator)
    logits = pixels @ weight.t() / temperature + bias
    of_targets = logits.gather(1, target[:, None])
    others = logits.scatter(1, target[:, None], -torch.inf).topk(4, dim=1).values
    expected = F.cross_entropy(torch.cat([of_targets, others], dim=1), torch.zeros(40, dtype=torch.int64))
    found = knn_cross_entropy(
        pixels, weight, target, bias=bias, similarity="dot", num_negatives=4, temperature=temperature
    )
    torch.testing.assert_close(found, expected)


def test_a_bias_of_distances_is_refused_by_the_search() -> None:
    with pytest.raises(ValueError, match="'dot' only"):
        nearest_classes(torch.zeros(2, 3), torch.zeros(4, 3), 1, bias=torch.zeros(4))
    with pytest.raises(ValueError, match=r"allowed is \(N, D, h, w\)"):
        predict_classes(torch.zeros(2, 3), torch.zeros(4, 3))
