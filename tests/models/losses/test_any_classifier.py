"""The exact loss of anybody's classifier, inner products with a bias: `F.cross_entropy` of all logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models import exact_cross_entropy

IGNORED = -100


def dense(
    features: Tensor,
    classifier: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    align_corners: bool = False,
    temperature: float = 1.0,
    **options: Any,
) -> Tensor:
    """All logits at full resolution, as a network's last layer and the usual loss form them."""
    if features.dim() == 2:
        logits = features @ classifier.flatten(1).t() / temperature
        logits = logits if bias is None else logits + bias
    else:
        logits = F.conv2d(features, classifier.view(*classifier.shape[:2], 1, 1)) / temperature
        logits = logits if bias is None else logits + bias[:, None, None]
        if logits.shape[2:] != target.shape[1:]:
            logits = F.interpolate(
                logits, size=target.shape[1:], mode="bilinear", align_corners=align_corners
            )
    return F.cross_entropy(logits, target, ignore_index=IGNORED, **options)


def inputs(
    classes: int = 7,
    dim: int = 5,
    low: tuple[int, int] = (4, 5),
    full: tuple[int, int] = (16, 20),
    images: int = 2,
    ignored: float = 0.2,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features (N, D, h, w), weight (C, D), bias (C,) and target (N, H, W), of which a share is ignored."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(images, dim, *low, generator=generator, dtype=dtype)
    weight = torch.randn(classes, dim, generator=generator, dtype=dtype) / dim**0.5
    bias = torch.randn(classes, generator=generator, dtype=dtype)
    target = torch.randint(classes, (images, *full), generator=generator)
    target[torch.rand(target.shape, generator=generator) < ignored] = IGNORED
    return features, weight, bias, target


def assert_same(ours: Any, theirs: Any, tensors: list[Tensor], rtol: float, atol: float) -> None:
    """Value and the gradients for all tensors."""
    for tensor in tensors:
        tensor.requires_grad_()
    found, expected = ours(), theirs()
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)
    of_ours = torch.autograd.grad(found, tensors)
    of_theirs = torch.autograd.grad(expected, tensors)
    for one, other in zip(of_ours, of_theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol)


OPTIONS = {
    "plain": {},
    "weights": {"weight": "class_weights"},
    "smoothing": {"label_smoothing": 0.1},
    "both": {"weight": "class_weights", "label_smoothing": 0.2},
    "sum": {"reduction": "sum"},
    "sum of weights": {"reduction": "sum", "weight": "class_weights", "label_smoothing": 0.1},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("work_bytes", [2**25, 2**12, pytest.param(400, marks=pytest.mark.slow)])
@pytest.mark.parametrize("shape", ["rows", "maps", "maps aligned", "odd maps", "same size"])
def test_it_is_the_dense_loss_in_value_and_all_three_gradients(
    shape: str, work_bytes: int, options: dict[str, Any]
) -> None:
    full = {"odd maps": (13, 11), "same size": (4, 5)}.get(shape, (16, 20))
    features, weight, bias, target = inputs(full=full)
    align = shape == "maps aligned"
    if shape == "rows":
        features = features.movedim(1, -1).flatten(0, 2).contiguous()
        target = target[:, ::4, ::4].flatten()
    of_torch, of_ours = dict(options), dict(options)
    if "weight" in options:
        weights = torch.linspace(0.0, 2.0, len(weight), dtype=weight.dtype)
        of_torch["weight"] = weights
        del of_ours["weight"]
        of_ours["class_weights"] = weights
    assert_same(
        lambda: exact_cross_entropy(
            features,
            weight,
            target,
            bias=bias,
            similarity="dot",
            temperature=1.0,
            align_corners=align,
            work_bytes=work_bytes,
            **of_ours,
        ),
        lambda: dense(features, weight, target, bias=bias, align_corners=align, **of_torch),
        [features, weight, bias],
        1e-9,
        1e-11,
    )


@pytest.mark.slow
@pytest.mark.parametrize(("classes", "dim"), [(2, 4), (3, 2048), (1284, 257), (100_000, 4)])
def test_any_number_of_classes_and_channels_in_float32(classes: int, dim: int) -> None:
    features, weight, bias, target = inputs(classes, dim, (3, 3), (12, 12), 1, dtype=torch.float32)
    assert_same(
        lambda: exact_cross_entropy(features, weight, target, bias=bias, similarity="dot", temperature=1.0),
        lambda: dense(features, weight, target, bias=bias),
        [features, weight, bias],
        1e-5,
        1e-6,
    )


@settings(max_examples=40, deadline=None)
@pytest.mark.slow
@given(
    classes=st.integers(2, 40),
    dim=st.integers(1, 9),
    low=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    factor=st.integers(1, 5),
    extra=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    align=st.booleans(),
    ignored=st.sampled_from([0.0, 0.3, 0.9]),
    smoothing=st.sampled_from([0.0, 0.15]),
    temperature=st.sampled_from([0.05, 1.0, 3.0]),
    work_bytes=st.sampled_from([300, 5_000, 2**22]),
    seed=st.integers(0, 3),
)
def test_any_shape(
    classes: int,
    dim: int,
    low: tuple[int, int],
    factor: int,
    extra: tuple[int, int],
    align: bool,
    ignored: float,
    smoothing: float,
    temperature: float,
    work_bytes: int,
    seed: int,
) -> None:
    full = (low[0] * factor + extra[0], low[1] * factor + extra[1])
    features, weight, bias, target = inputs(classes, dim, low, full, ignored=ignored, seed=seed)
    target[0, 0, 0] = 1  # at least one labeled pixel: the mean of none is ours to define
    common: dict[str, Any] = {
        "bias": bias,
        "temperature": temperature,
        "align_corners": align,
        "label_smoothing": smoothing,
    }
    assert_same(
        lambda: exact_cross_entropy(
            features, weight, target, similarity="dot", work_bytes=work_bytes, **common
        ),
        lambda: dense(features, weight, target, **common),
        [features, weight, bias],
        1e-8,
        1e-10,
    )


def test_a_convolutions_weight_is_taken_as_it_is() -> None:
    classifier = torch.nn.Conv2d(5, 7, 1).double()
    features, _, _, target = inputs()
    assert_same(
        lambda: exact_cross_entropy(
            features, classifier.weight, target, bias=classifier.bias, similarity="dot", temperature=1.0
        ),
        lambda: F.cross_entropy(
            F.interpolate(classifier(features), size=target.shape[1:], mode="bilinear"), target
        ),
        [features, classifier.weight, classifier.bias],
        1e-9,
        1e-11,
    )


def test_nothing_labeled_is_zero_with_zero_gradients() -> None:
    features, weight, bias, target = inputs(ignored=2.0)
    tensors = [features.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()]
    loss = exact_cross_entropy(
        features, weight, target, bias=bias, similarity="dot", temperature=1.0, label_smoothing=0.1
    )
    assert loss.item() == 0
    assert all(not gradient.any() for gradient in torch.autograd.grad(loss, tensors))


def test_finite_differences() -> None:
    features, weight, bias, target = inputs(4, 3, (2, 3), (4, 6), 1)
    weights = torch.tensor([0.5, 1.0, 2.0, 0.0], dtype=torch.float64)

    def loss(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return exact_cross_entropy(
            features, weight, target, bias=bias, similarity="dot", temperature=0.7,
            class_weights=weights, label_smoothing=0.1,
        )  # fmt: skip

    tensors = tuple(tensor.requires_grad_() for tensor in (features, weight, bias))
    assert torch.autograd.gradcheck(loss, tensors)


@pytest.mark.parametrize("shape", ["rows", "maps"])
def test_distances_take_a_bias_and_class_weights_too(shape: str) -> None:
    features, weight, bias, target = inputs()
    if shape == "rows":
        features = features.movedim(1, -1).flatten(0, 2).contiguous()
        target = target[:, ::4, ::4].flatten()
    weights = torch.linspace(0.1, 2.0, len(weight), dtype=weight.dtype)

    def ours() -> Tensor:
        return exact_cross_entropy(
            features, weight, target, bias=bias, similarity="distance", temperature=0.5, class_weights=weights
        )

    def theirs() -> Tensor:
        rows, targets = features, target
        if shape == "maps":
            full = F.interpolate(features, size=target.shape[1:], mode="bilinear")
            rows, targets = full.movedim(1, -1).flatten(0, 2), target.flatten()
        logits = -torch.cdist(rows, weight, compute_mode="donot_use_mm_for_euclid_dist") / 0.5 + bias
        return F.cross_entropy(logits, targets, weight=weights)

    assert_same(ours, theirs, [features, weight, bias], 1e-8, 1e-10)


def test_what_is_not_linear_or_does_not_fit_is_refused() -> None:
    features, weight, bias, target = inputs()
    with pytest.raises(ValueError, match=r"label_smoothing.*dot"):
        exact_cross_entropy(features, weight, target, label_smoothing=0.1, similarity="distance")
    with pytest.raises(ValueError, match=r"label_smoothing is 1\.5"):
        exact_cross_entropy(features, weight, target, label_smoothing=1.5, similarity="dot")
    with pytest.raises(ValueError, match="bias has shape"):
        exact_cross_entropy(features, weight, target, bias=bias[:-1], similarity="dot")
    with pytest.raises(ValueError, match="class_weights has shape"):
        exact_cross_entropy(features, weight, target, class_weights=bias[:-1], similarity="dot")
    with pytest.raises(ValueError, match="reduction is 'none'"):
        exact_cross_entropy(features, weight, target, reduction="none", similarity="dot")
    with pytest.raises(ValueError, match="align_corners"):
        exact_cross_entropy(
            features.movedim(1, -1).flatten(0, 2), weight, target[:, ::4, ::4].flatten(), align_corners=True
        )
