"""What all losses keep to, against plain cross-entropy on all logits."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from models.losses import exact_cross_entropy, knn_cross_entropy, sampled_cross_entropy
from tests.models.losses.dense import (
    ALL_CLASSES,
    SIMILARITIES,
    assert_same_loss_and_gradients,
    dense,
    problem,
    sampled_by_one_seed,
)


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("name", ALL_CLASSES)
@pytest.mark.parametrize("num_classes", [2, 37, 301])
def test_with_all_classes_every_loss_is_cross_entropy_on_all_logits(name, similarity, num_classes):
    pixels, classes, target = problem(400, num_classes, 16, ignored=0.3)
    loss = ALL_CLASSES[name](pixels, classes, target, similarity=similarity)
    assert_same_loss_and_gradients(loss, dense(pixels, classes, target, similarity), (pixels, classes))


@settings(max_examples=12, deadline=None)
@example(num_pixels=19, num_classes=153, dim=1, work_bytes=65_408, similarity="distance", name="exact")
@given(
    num_pixels=st.integers(1, 60),
    num_classes=st.integers(1, 200),
    dim=st.integers(1, 24),
    work_bytes=st.integers(1, 100_000),
    similarity=st.sampled_from(SIMILARITIES),
    name=st.sampled_from(list(ALL_CLASSES)),
)
def test_the_size_of_the_work_buffer_changes_nothing(
    num_pixels, num_classes, dim, work_bytes, similarity, name
):
    torch.manual_seed(num_pixels)
    pixels, classes, target = problem(num_pixels, num_classes, dim, torch.float64, ignored=0.2)
    loss = ALL_CLASSES[name](pixels, classes, target, similarity=similarity, work_bytes=work_bytes)
    unchunked = ALL_CLASSES[name](pixels, classes, target, similarity=similarity, work_bytes=2**30)
    gradients = torch.autograd.grad(loss, (pixels, classes))
    expected = torch.autograd.grad(unchunked, (pixels, classes))
    torch.testing.assert_close(loss, unchunked)
    torch.testing.assert_close(gradients, expected)


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("work_bytes", [2**25, pytest.param(500, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "loss",
    [
        exact_cross_entropy,
        functools.partial(knn_cross_entropy, num_negatives=3),
        functools.partial(sampled_by_one_seed, num_negatives=3),
    ],
    ids=["exact", "knn", "sampled"],
)
def test_the_gradients_are_those_of_finite_differences(loss, similarity, work_bytes):
    pixels, classes, target = problem(5, 11, 3, torch.float64, ignored=0.2)
    call = functools.partial(
        loss, target=target, similarity=similarity, work_bytes=work_bytes, temperature=0.3
    )
    assert torch.autograd.gradcheck(call, (pixels, classes))


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("name", ALL_CLASSES)
@pytest.mark.parametrize("ignore_index", [-1, 255])
def test_a_batch_without_labels_gives_zero_and_zero_gradients(name, similarity, ignore_index):
    pixels, classes, _ = problem(7, 5, 8)
    target = torch.full((7,), ignore_index)
    loss = ALL_CLASSES[name](pixels, classes, target, similarity=similarity, ignore_index=ignore_index)
    loss.backward()
    assert loss.item() == 0
    assert pixels.grad.count_nonzero() == 0
    assert classes.grad.count_nonzero() == 0


@pytest.mark.parametrize("name", ALL_CLASSES)
def test_ignored_pixels_take_no_part(name):
    pixels, classes, target = problem(50, 300, 8, ignored=0.5, ignore_index=255)
    target[0] = 3
    loss = ALL_CLASSES[name](pixels, classes, target, ignore_index=255)
    kept = target != 255
    alone = ALL_CLASSES[name](pixels[kept], classes, target[kept], ignore_index=255)
    torch.testing.assert_close(loss, alone)
    assert torch.autograd.grad(loss, pixels)[0][~kept].count_nonzero() == 0


@pytest.mark.usefixtures("each_implementation")
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("loss", [exact_cross_entropy, knn_cross_entropy, sampled_by_one_seed])
def test_one_gradient_alone_is_the_same_as_among_both(loss, similarity):
    pixels, classes, target = problem(60, 90, 8)
    both = torch.autograd.grad(loss(pixels, classes, target, similarity=similarity), (pixels, classes))
    for_pixels = loss(pixels, classes.detach(), target, similarity=similarity)
    for_classes = loss(pixels.detach(), classes, target, similarity=similarity)
    assert torch.equal(torch.autograd.grad(for_pixels, pixels)[0], both[0])
    assert torch.equal(torch.autograd.grad(for_classes, classes)[0], both[1])
    with torch.no_grad():
        assert not loss(pixels, classes, target, similarity=similarity).requires_grad


@pytest.mark.usefixtures("each_implementation")
@pytest.mark.parametrize("name", ALL_CLASSES)
def test_bfloat16_inputs_under_autocast_are_accumulated_in_float32(name):
    pixels, classes, target = problem(500, 100, 16)
    low_pixels, low_classes = (tensor.detach().bfloat16().requires_grad_() for tensor in (pixels, classes))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = ALL_CLASSES[name](low_pixels, low_classes, target)
    expected = dense(low_pixels.float(), low_classes.float(), target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad(loss, (low_pixels, low_classes))
    for gradient, wanted in zip(
        gradients, torch.autograd.grad(expected, (low_pixels, low_classes)), strict=True
    ):
        assert gradient.dtype == torch.bfloat16
        torch.testing.assert_close(gradient, wanted, rtol=1e-2, atol=1e-2 * float(wanted.abs().max()))


@pytest.mark.usefixtures("each_implementation")
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("work_bytes", [2**25, 300])
@pytest.mark.parametrize("loss", [exact_cross_entropy, knn_cross_entropy, sampled_by_one_seed])
def test_embeddings_that_are_not_numbers_give_a_loss_that_is_none(loss, work_bytes, similarity):
    """It is the training that notices and names the images; the loss must not fail before."""
    pixels, classes, target = problem(20, 9, 4)
    value = loss(pixels * math.nan, classes, target, similarity=similarity, work_bytes=work_bytes)
    assert value.isnan()
    value.backward()


@pytest.mark.parametrize("loss", [exact_cross_entropy, knn_cross_entropy, sampled_cross_entropy])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"target": torch.tensor([0, 5, -100])},
            "target contains 5; allowed are 0 to 4 and ignore_index -100",
        ),
        ({"target": torch.tensor([0, -2, 1])}, "target contains -2; allowed are 0 to 4"),
        ({"target": torch.tensor([0, 1])}, r"target has shape \(2,\).*\(3,\) int64"),
        ({"target": torch.tensor([0.0, 1.0, 2.0])}, "dtype torch.float32"),
        ({"class_embeddings": torch.zeros(5, 7)}, "4 channels and class_embeddings 7"),
        ({"embeddings": torch.zeros(1, 4, 3)}, "pixel_embeddings has shape"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"similarity": "sine"}, "similarity is 'sine'; allowed are 'distance', 'dot', 'cosine'"),
    ],
)
def test_wrong_arguments_are_named_with_what_is_allowed(loss, change, message):
    arguments = {
        "embeddings": torch.zeros(3, 4),
        "class_embeddings": torch.zeros(5, 4),
        "target": torch.tensor([0, 4, -100]),
    }
    with pytest.raises(ValueError, match=message):
        loss(**arguments | change)


@pytest.mark.parametrize("loss", [knn_cross_entropy, sampled_cross_entropy])
def test_no_negatives_are_refused_and_too_many_are_all(loss):
    assert loss(*problem(3, 5, 4), num_negatives=10**9).isfinite()
    with pytest.raises(ValueError, match="num_negatives is 0; allowed are 1 and more"):
        loss(*problem(3, 5, 4), num_negatives=0)
