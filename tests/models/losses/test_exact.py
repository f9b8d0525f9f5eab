"""The exact loss: rows and maps by one function, its module, and the corners of its arithmetic."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F

from models.losses.exact import EmbeddingCrossEntropy, exact_cross_entropy, exact_cross_entropy_of_maps
from tests.models.losses.dense import SIMILARITIES, dense, dense_logits, problem


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_of_maps_it_is_that_of_their_upsampled_pixels(similarity):
    maps = torch.randn(2, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    classes = torch.randn(11, 3, dtype=torch.float64, requires_grad=True)
    target = torch.randint(-1, 11, (2, 5, 7), generator=torch.Generator().manual_seed(0))
    target[target < 0] = -100
    options = {"similarity": similarity, "temperature": 0.3}
    upsampled = F.interpolate(maps, size=(5, 7), mode="bilinear", align_corners=False)
    rows = upsampled.movedim(1, -1).reshape(-1, 3)
    loss = exact_cross_entropy(maps, classes, target, **options)
    torch.testing.assert_close(loss, exact_cross_entropy(rows, classes, target.flatten(), **options))
    call = functools.partial(exact_cross_entropy, target=target, **options)
    assert torch.autograd.gradcheck(call, (maps, classes))


@pytest.mark.parametrize(
    ("maps", "target", "message"),
    [
        ((4, 3), (1, 2, 2), r"target has shape \(1, 2, 2\).*\(4,\) int64"),
        ((2, 3, 2, 2), (2,), r"allowed are \(N, D, h, w\) and \(N, H, W\)"),
        ((2, 3, 2, 2), (1, 4, 4), r"allowed are \(N, D, h, w\) and \(N, H, W\)"),
        ((2, 5, 2, 2), (2, 4, 4), "same embedding_dim"),
    ],
)
def test_embeddings_and_targets_that_do_not_fit_are_refused(maps, target, message):
    with pytest.raises(ValueError, match=message):
        exact_cross_entropy(torch.zeros(maps), torch.zeros(7, 3), torch.zeros(target, dtype=torch.int64))


def test_pixels_choose_among_those_of_maps_only():
    with pytest.raises(ValueError, match=r"pixels chooses among the pixels of maps \(N, D, h, w\)"):
        exact_cross_entropy(*problem(5, 6, 4), pixels=torch.arange(2))


def test_the_old_name_of_the_loss_of_maps_is_kept_for_one_release():
    assert exact_cross_entropy_of_maps is exact_cross_entropy


@pytest.mark.parametrize("shape", [(12, 4), (1, 4, 3, 4)])
def test_the_module_is_the_function_with_its_options(shape):
    pixels, classes = torch.randn(shape, requires_grad=True), torch.randn(6, 4, requires_grad=True)
    target = torch.randint(0, 6, (12,) if len(shape) == 2 else (1, 6, 8))
    target[:1] = 255
    options = {"temperature": 0.3, "similarity": "cosine", "ignore_index": 255, "work_bytes": 5_000}
    module = EmbeddingCrossEntropy(**options)
    assert list(module.parameters()) == []
    assert repr(module) == "EmbeddingCrossEntropy(temperature=0.3, similarity='cosine', ignore_index=255)"
    found, expected = module(pixels, classes, target), exact_cross_entropy(pixels, classes, target, **options)
    assert torch.equal(found, expected)
    ours, wanted = (torch.autograd.grad(loss, (pixels, classes)) for loss in (found, expected))
    assert all(torch.equal(one, other) for one, other in zip(ours, wanted, strict=True))


@pytest.mark.parametrize(("option", "value"), [("temperature", 0.0), ("similarity", "sine")])
def test_the_module_refuses_wrong_options_when_it_is_made(option, value):
    with pytest.raises(ValueError, match=f"{option} is {value!r}; allowed are"):
        EmbeddingCrossEntropy(**{option: value})


def test_gradients_accumulate_and_scale_with_the_loss():
    pixels, classes, target = problem(30, 20, 8)
    loss = exact_cross_entropy(pixels, classes, target)
    loss.backward(retain_graph=True)
    once = classes.grad.clone()
    (3 * loss).backward()
    torch.testing.assert_close(classes.grad, 4 * once)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_a_second_derivative_is_refused():
    pixels, classes, target = problem(5, 6, 4)
    gradient = torch.autograd.grad(exact_cross_entropy(pixels, classes, target), pixels, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="only once"):
        gradient.sum().backward()


@pytest.mark.usefixtures("each_implementation")
@pytest.mark.parametrize("work_bytes", [2**25, 3_000])
def test_pixels_that_sit_on_classes_are_exact_and_have_finite_gradients(work_bytes):
    """A squared distance from a matrix product would be off by 1e-7 here, the logit by 0.01."""
    classes = F.normalize(torch.randn(60, 8), dim=1).requires_grad_()
    pixels = torch.cat([classes.detach(), classes.detach() + 1e-3 * torch.randn(60, 8)]).requires_grad_()
    target = torch.cat([torch.arange(60), torch.arange(60).roll(1)])
    loss = exact_cross_entropy(pixels, classes, target, work_bytes=work_bytes)
    exact = dense(pixels.detach().double(), classes.detach().double(), target)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=1e-6)
    for gradient in torch.autograd.grad(loss, (pixels, classes)):
        assert gradient.isfinite().all()
        assert gradient.abs().max() < 1


@pytest.mark.usefixtures("each_implementation")
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("temperature", [0.05, 0.012])
def test_targets_that_are_the_least_likely_class_of_all(similarity: str, temperature: float) -> None:
    """Their share of the softmax is 1e-17 or has underflowed to zero; the loss is large, not infinite."""
    pixels, classes, _ = problem(40, 301, 8, torch.float64)
    target = dense_logits(pixels, classes, similarity, 1.0).argmin(dim=1)
    single = [tensor.detach().float().requires_grad_() for tensor in (pixels, classes)]
    loss = exact_cross_entropy(*single, target, similarity=similarity, temperature=temperature)
    expected = dense(pixels, classes, target, similarity, temperature)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    wanted = torch.autograd.grad(expected, (pixels, classes))
    for gradient, of_dense in zip(torch.autograd.grad(loss, single), wanted, strict=True):
        torch.testing.assert_close(gradient.double(), of_dense, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("each_implementation")
def test_very_cold_logits_neither_overflow_nor_vanish():
    pixels, classes, target = problem(40, 30, 6, torch.float64)
    for similarity in SIMILARITIES:
        loss = exact_cross_entropy(
            pixels.float(), classes.float(), target, temperature=1e-3, similarity=similarity
        )
        expected = dense(pixels, classes, target, similarity, temperature=1e-3)
        torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.slow
def test_it_works_in_a_compiled_step():
    """The loss leaves the graph; what is around it stays compiled."""
    pixels, classes, target = problem(40, 12, 8)

    def step(pixels, classes):
        return exact_cross_entropy(F.normalize(pixels * 2, dim=1), classes, target) * 2

    compiled = torch.compile(step, backend="eager")
    torch.testing.assert_close(compiled(pixels, classes), step(pixels, classes))
    torch.testing.assert_close(
        torch.autograd.grad(compiled(pixels, classes), pixels),
        torch.autograd.grad(step(pixels, classes), pixels),
    )


def test_a_target_of_another_type_is_told_with_the_remedy() -> None:
    maps, classes = torch.zeros(1, 3, 2, 2), torch.zeros(7, 3)
    with pytest.raises(ValueError, match=r"target has dtype torch.int32.*int64.*target\.long\(\)"):
        exact_cross_entropy(maps, classes, torch.zeros(1, 8, 8, dtype=torch.int32))
