"""The exact loss of low-resolution maps against plain cross-entropy on all logits of the upsampled maps."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.losses.exact import exact_cross_entropy
from models.tiled import cross_entropy_of_maps as tiled_maps
from models.tiled.threads import num_workers
from tests.models.allocation import extra_bytes

SIMILARITIES = ["distance", "cosine"]


@pytest.fixture(autouse=True)
def _one_thread_and_one_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def problem(shape, factor, num_classes, dtype=torch.float64, unlabeled=0.0):
    """Maps (N, D, h, w), class embeddings and a target `factor` times as large."""
    maps = F.normalize(torch.randn(shape, dtype=dtype), dim=1).requires_grad_()
    classes = F.normalize(torch.randn(num_classes, shape[1], dtype=dtype), dim=1).requires_grad_()
    size = shape[0], round(factor * shape[2]), round(factor * shape[3])
    target = torch.randint(0, num_classes, size)
    target[torch.rand(size) < unlabeled] = -100
    return maps, classes, target


def dense(maps: Tensor, classes: Tensor, target: Tensor, similarity: str, temperature: float = 0.1) -> Tensor:
    upsampled = F.interpolate(maps, size=target.shape[1:], mode="bilinear", align_corners=False)
    pixels = upsampled.movedim(1, -1).flatten(0, 2)
    if similarity == "cosine":
        logits = pixels @ classes.T / temperature
    else:
        logits = -torch.linalg.vector_norm(pixels[:, None] - classes, dim=2) / temperature
    return F.cross_entropy(logits, target.flatten(), ignore_index=-100)


def assert_same(loss: Tensor, expected: Tensor, inputs: tuple[Tensor, ...], tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(loss, expected, rtol=tolerance, atol=tolerance)
    gradients = torch.autograd.grad(loss, inputs)
    for gradient, wanted in zip(gradients, torch.autograd.grad(expected, inputs), strict=True):
        scale = float(wanted.abs().max())
        torch.testing.assert_close(gradient, wanted, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(
    factor=st.sampled_from([1, 2, 3, 4, 8, 2.5]),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    num_classes=st.integers(1, 40),
    unlabeled=st.sampled_from([0.0, 0.2, 0.5, 0.95]),
    work_bytes=st.sampled_from([1, 5_000, 40_000, 400_000]),
    similarity=st.sampled_from(SIMILARITIES),
)
def test_it_is_cross_entropy_on_all_logits_of_the_upsampled_maps(
    factor, height, width, num_classes, unlabeled, work_bytes, similarity
):
    """Whole factors and others, blocks of any size, edges, unlabeled pixels, no memory for a block."""
    torch.manual_seed(height * width)
    factor = min(factor, 2.5) if work_bytes == 1 else factor  # pixel by pixel, which takes long
    maps, classes, target = problem((2, 3, height, width), factor, num_classes, unlabeled=unlabeled)
    target[0, 0, 0] = 0  # at least one label
    options = {"similarity": similarity, "temperature": 0.1, "work_bytes": work_bytes}
    loss = exact_cross_entropy(maps, classes, target, **options)
    assert_same(loss, dense(maps, classes, target, similarity), (maps, classes))


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_blocks_are_really_used_and_pixels_outside_of_them_too(similarity, monkeypatch):
    """Half of the image is labeled in every pixel, of the other half every fifth."""
    maps, classes, target = problem((1, 4, 16, 16), 4, 50)
    sparse = torch.rand(1, 64, 32) < 0.8
    target[:, :, 32:][sparse] = -100
    seen = {"compare_blocks": 0, "compare_pixels": 0}
    for name in seen:
        method = getattr(tiled_maps._Maps, name)

        def counted(*arguments, name=name, method=method):
            losses = method(*arguments)
            seen[name] += int(losses.count_nonzero())
            return losses

        monkeypatch.setattr(tiled_maps._Maps, name, counted)
    loss = exact_cross_entropy(
        maps, classes, target, similarity=similarity, temperature=0.1, work_bytes=2**18
    )
    assert_same(loss, dense(maps, classes, target, similarity), (maps, classes))
    assert sum(seen.values()) == int((target >= 0).sum())
    assert seen["compare_blocks"] > 64 * 32 * 0.8
    assert seen["compare_pixels"] > 0.8 * int((~sparse).sum())


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("factor", [4, 2.5])
def test_of_some_pixels_it_is_that_of_all_others_unlabeled(similarity, factor):
    maps, classes, target = problem((2, 4, 6, 6), factor, 50, unlabeled=0.3)
    labeled = (target.flatten() >= 0).nonzero()[:, 0]
    pixels = labeled[torch.randperm(len(labeled))[:40]]
    alone = torch.full_like(target, -100)
    alone.view(-1)[pixels] = target.flatten()[pixels]
    options = {"similarity": similarity, "temperature": 0.1, "work_bytes": 20_000}
    loss = exact_cross_entropy(maps, classes, target, pixels=pixels, **options)
    assert_same(loss, dense(maps, classes, alone, similarity), (maps, classes))
    none = exact_cross_entropy(maps, classes, target, pixels=pixels[:0], **options)
    assert none.item() == 0


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_the_gradients_are_those_of_finite_differences(similarity):
    maps, classes, target = problem((1, 2, 2, 3), 4, 5, unlabeled=0.1)
    call = functools.partial(exact_cross_entropy, target=target, similarity=similarity, temperature=0.3)
    assert torch.autograd.gradcheck(call, (maps, classes))


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_nothing_but_rounding_and_the_same_number_not_even_that(similarity, threads):
    maps, classes, target = problem((2, 8, 24, 24), 4, 300, torch.float32, unlabeled=0.3)
    call = functools.partial(exact_cross_entropy, maps, classes, target, similarity=similarity)
    alone = [call(), *torch.autograd.grad(call(), (maps, classes))]
    torch.set_num_threads(threads)
    shared, again = ([call(), *torch.autograd.grad(call(), (maps, classes))] for _ in range(2))
    for one, other, repeated in zip(alone, shared, again, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(one.detach().abs().max()))
        assert torch.equal(other, repeated)


@pytest.mark.usefixtures("each_implementation")
def test_maps_that_sit_on_classes_have_exact_losses_and_finite_gradients():
    """Whole squares of pixels are at distance zero from a class, their target's or another."""
    classes = F.normalize(torch.randn(30, 6), dim=1).requires_grad_()
    columns = classes.detach()[torch.arange(8) // 2 % 2]  # two equal columns of each class, so cells between
    maps = columns.T[None, :, None].expand(1, 6, 8, 8).clone().requires_grad_()
    target = torch.randint(0, 4, (1, 32, 32))
    loss = exact_cross_entropy(maps, classes, target, temperature=0.1)
    exact = dense(maps.detach().double(), classes.detach().double(), target, "distance")
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=1e-5)
    for gradient in torch.autograd.grad(loss, (maps, classes)):
        assert gradient.isfinite().all()
        assert gradient.abs().max() < 10


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_without_labels_it_is_zero_with_zero_gradients(similarity):
    maps, classes, target = problem((1, 4, 3, 3), 4, 7)
    loss = exact_cross_entropy(maps, classes, torch.full_like(target, -100), similarity=similarity)
    assert loss.item() == 0
    for gradient in torch.autograd.grad(loss, (maps, classes)):
        assert gradient.count_nonzero() == 0


@pytest.mark.usefixtures("each_implementation")
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_one_gradient_alone_is_the_same_as_among_both_and_bfloat16_stays_bfloat16(similarity):
    maps, classes, target = problem((1, 4, 6, 6), 4, 20, torch.float32, unlabeled=0.1)
    call = functools.partial(exact_cross_entropy, similarity=similarity)
    both = torch.autograd.grad(call(maps, classes, target), (maps, classes))
    assert torch.equal(torch.autograd.grad(call(maps, classes.detach(), target), maps)[0], both[0])
    assert torch.equal(torch.autograd.grad(call(maps.detach(), classes, target), classes)[0], both[1])
    low = maps.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = call(low, classes, target)
    assert loss.dtype == torch.float32
    expected = call(low.detach().float().requires_grad_(), classes, target)
    torch.testing.assert_close(loss, expected)
    assert torch.autograd.grad(loss, low)[0].dtype == torch.bfloat16


def test_a_target_out_of_range_is_named():
    maps, classes, target = problem((1, 4, 3, 3), 4, 7)
    target[0, 5, 5] = 7
    with pytest.raises(ValueError, match="target contains 7; allowed are 0 to 6"):
        exact_cross_entropy(maps, classes, target)


@pytest.mark.slow
@pytest.mark.usefixtures("each_implementation")
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("threads", [1, 2])
def test_it_holds_the_buffer_and_no_embeddings_at_full_resolution(similarity, threads, monkeypatch):
    """The target takes eight bytes a pixel and embeddings of it would take 64, logits 1,600.

    The profiler that counts sees one thread alone, which does the work of all, each with its own buffers.
    """
    maps, classes, target = problem((1, 16, 80, 80), 4, 400, torch.float32)
    buffer, pixels = threads * 2**22, target.numel()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert num_workers(maps.device, 100, buffer) == threads

    def call():
        loss = exact_cross_entropy(maps, classes, target, similarity=similarity, work_bytes=buffer)
        torch.autograd.grad(loss, (maps, classes))

    inputs = 4 * 16 * (80 * 80 + 400)
    assert extra_bytes(call) <= 5 * inputs + buffer + 24 * pixels < 64 * pixels + buffer


@pytest.mark.usefixtures("each_implementation")
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("factor", [4, 2.5])
def test_embeddings_that_are_not_numbers_give_a_loss_that_is_none(similarity, factor):
    """It is the training that notices and names the images; the loss must not fail before."""
    maps, classes, target = problem((1, 4, 3, 4), factor, 7, torch.float32)
    loss = exact_cross_entropy(maps * float("nan"), classes, target, similarity=similarity)
    assert loss.isnan()
    loss.backward()
