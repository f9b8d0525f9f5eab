"""The paper's loss: the target and its nearest others."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from models.compiled import nearest_of_maps, reason_against_numba
from models.losses import exact_cross_entropy, knn_cross_entropy
from tests.models.losses.dense import SIMILARITIES, assert_same_loss_and_gradients, dense_logits, problem


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_knn_is_the_papers_loss_over_the_target_and_its_nearest_others(similarity):
    pixels, classes, target = problem(80, 40, 8)
    logits = dense_logits(pixels, classes, similarity, 0.05)
    others = logits.detach().scatter(1, target[:, None], -math.inf).topk(5, dim=1).indices
    compared = torch.cat([target[:, None], others], dim=1)
    expected = F.cross_entropy(logits.gather(1, compared), torch.zeros_like(target))
    loss = knn_cross_entropy(pixels, classes, target, num_negatives=5, similarity=similarity)
    assert_same_loss_and_gradients(loss, expected, (pixels, classes))
    assert loss < exact_cross_entropy(pixels, classes, target, similarity=similarity)


def test_class_0_is_never_its_own_negative():
    """The released code writes "id - 1" over a neighbor equal to the target, and leaves class 0 as it is."""
    classes = torch.eye(3).requires_grad_()
    pixels = torch.eye(3)[:1].clone().requires_grad_()
    loss = knn_cross_entropy(pixels, classes, torch.tensor([0]), num_negatives=1, temperature=1.0)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-math.sqrt(2))), rel=1e-5)  # not log 2


def map_problem(num_classes, dim, low_res, size, ignored=0.2):
    maps = F.normalize(torch.randn(2, dim, *low_res), dim=1)
    classes = F.normalize(torch.randn(num_classes, dim), dim=1)
    target = torch.randint(0, num_classes, (2, *size))
    target[torch.rand(target.shape) < ignored] = -100
    return maps, classes, target


def of_all_logits(maps, classes, bias, target, num_negatives, temperature):
    """The target and its nearest others, chosen among all logits of float64 at full resolution."""
    rows = F.interpolate(maps, size=target.shape[1:], mode="bilinear").movedim(1, -1).flatten(0, 2)
    labeled = target.flatten() != -100
    rows, own = rows[labeled], target.flatten()[labeled][:, None]
    logits = rows @ classes.T / temperature + bias
    others = logits.detach().scatter(1, own, -math.inf).topk(num_negatives, dim=1).indices
    return F.cross_entropy(logits.gather(1, torch.cat([own, others], dim=1)), torch.zeros_like(own[:, 0]))


@pytest.mark.usefixtures("each_implementation")
@pytest.mark.parametrize(
    ("num_classes", "num_negatives", "low_res", "size", "ignored", "temperature"),
    [
        (300, 7, (5, 7), (20, 28), 0.2, 0.05),  # a whole factor, more classes than a block
        (300, 7, (5, 7), (20, 28), 0.9, 0.05),  # few labels, whose rows are compared
        (29, 7, (4, 3), (11, 10), 0.0, 1.0),
        (5, 1, (1, 2), (4, 7), 0.2, 1.0),
        (6, 5, (3, 3), (12, 12), 0.2, 1.0),  # every other class
    ],
)
def test_knn_of_maps_chooses_among_upsampled_logits(
    num_classes, num_negatives, low_res, size, ignored, temperature
):
    inputs = *map_problem(num_classes, 6, low_res, size, ignored), torch.randn(num_classes)
    ours = [inputs[place].clone().requires_grad_() for place in (0, 1, 3)]
    theirs = [inputs[place].double().requires_grad_() for place in (0, 1, 3)]
    loss = knn_cross_entropy(
        *ours[:2], inputs[2], bias=ours[2], similarity="dot", temperature=temperature,
        num_negatives=num_negatives,
    )  # fmt: skip
    expected = of_all_logits(*theirs, inputs[2], num_negatives, temperature)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    for gradient, wanted in zip(
        torch.autograd.grad(loss, ours), torch.autograd.grad(expected, theirs), strict=True
    ):
        torch.testing.assert_close(gradient.double(), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


def test_knn_of_maps_in_small_tiles_by_several_threads_is_the_same(each_implementation):
    maps, classes, target = map_problem(300, 8, (8, 8), (64, 64))
    maps.requires_grad_()
    options = {"similarity": "cosine", "num_negatives": 7}

    def computed(work_bytes, threads):
        torch.set_num_threads(threads)
        loss = knn_cross_entropy(maps, classes, target, work_bytes=work_bytes, **options)
        return loss.detach(), torch.autograd.grad(loss, maps)[0]

    whole, in_tiles = computed(2**25, 1), computed(2**16, 1)
    torch.testing.assert_close(in_tiles, whole, rtol=1e-5, atol=1e-7)
    if each_implementation == "compiled":
        for found, expected in zip(computed(2**25, 3), whole, strict=True):
            assert torch.equal(found, expected)


@pytest.mark.skipif(reason_against_numba() is not None, reason="no numba here")
def test_maps_are_compared_by_compiled_code_where_it_applies(monkeypatch):
    """The default setting of `essnet`; distances and few labels take the way of rows."""
    called = []
    real = nearest_of_maps.cross_entropy_of_nearest
    monkeypatch.setattr(
        nearest_of_maps, "cross_entropy_of_nearest", lambda *a, **k: called.append(1) or real(*a, **k)
    )
    monkeypatch.setenv("KILOSEG_KERNELS", "compiled")
    maps, classes, target = map_problem(40, 4, (3, 3), (12, 12))
    knn_cross_entropy(maps, classes, target, similarity="cosine")
    assert called == [1]
    knn_cross_entropy(maps, classes, target, similarity="distance")
    knn_cross_entropy(maps, classes, target.clone().fill_(-100), similarity="cosine")
    assert called == [1]


@pytest.mark.usefixtures("each_implementation")
def test_maps_that_are_not_numbers_give_a_loss_that_is_none():
    maps, classes, target = map_problem(40, 4, (3, 3), (12, 12))
    broken = (maps * math.nan).requires_grad_()
    value = knn_cross_entropy(broken, classes, target, similarity="cosine")
    assert value.isnan()
    value.backward()
    maps[0, 0, 1, 1] = math.nan
    assert knn_cross_entropy(maps, classes, target, similarity="cosine").isnan()
