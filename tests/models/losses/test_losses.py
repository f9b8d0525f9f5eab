"""The losses against plain cross-entropy on all logits, written out here a second time."""

from __future__ import annotations

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.losses.exact import exact_cross_entropy, exact_cross_entropy_of_maps
from models.losses.knn import knn_cross_entropy
from models.losses.sampled import sampled_cross_entropy
from models.losses.separation import separation_loss

SIMILARITIES = ["distance", "cosine"]


def knn_of_all(pixels, classes, target, **options):
    return knn_cross_entropy(pixels, classes, target, num_negatives=max(1, len(classes) - 1), **options)


def sampled_by_one_seed(pixels, classes, target, **options):
    generator = torch.Generator().manual_seed(4)
    return sampled_cross_entropy(pixels, classes, target, generator=generator, **options)


ALL_CLASSES = {
    "exact": exact_cross_entropy,
    "knn": knn_of_all,
    "sampled": functools.partial(sampled_cross_entropy, num_negatives=10**9),
}


@pytest.fixture(autouse=True)
def _one_thread_and_one_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def problem(num_pixels, num_classes, dim, dtype=torch.float32, ignored=0.0, ignore_index=-1):
    pixels = F.normalize(torch.randn(num_pixels, dim, dtype=dtype), dim=1).requires_grad_()
    classes = F.normalize(torch.randn(num_classes, dim, dtype=dtype), dim=1).requires_grad_()
    target = torch.randint(0, num_classes, (num_pixels,))
    target[torch.rand(num_pixels) < ignored] = ignore_index
    return pixels, classes, target


def dense_logits(pixels: Tensor, classes: Tensor, similarity: str, temperature: float) -> Tensor:
    if similarity == "cosine":
        return pixels @ classes.T / temperature
    return -torch.linalg.vector_norm(pixels[:, None] - classes[None], dim=2) / temperature


def dense(pixels, classes, target, similarity="distance", temperature=0.05, ignore_index=-1):
    logits = dense_logits(pixels, classes, similarity, temperature)
    return F.cross_entropy(logits, target, ignore_index=ignore_index)


def assert_same_loss_and_gradients(loss, expected, inputs, tolerance=1e-5):
    torch.testing.assert_close(loss, expected, rtol=tolerance, atol=tolerance)
    gradients = torch.autograd.grad(loss, inputs)
    for gradient, wanted in zip(gradients, torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=tolerance * float(wanted.abs().max()))


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
@pytest.mark.parametrize("work_bytes", [2**25, 500])
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
def test_the_loss_of_maps_is_that_of_their_upsampled_pixels(similarity):
    maps = torch.randn(2, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    classes = torch.randn(11, 3, dtype=torch.float64, requires_grad=True)
    target = torch.randint(-1, 11, (2, 5, 7), generator=torch.Generator().manual_seed(0))
    options = {"similarity": similarity, "temperature": 0.3}
    upsampled = F.interpolate(maps, size=(5, 7), mode="bilinear", align_corners=False)
    rows = upsampled.movedim(1, -1).reshape(-1, 3)
    loss = exact_cross_entropy_of_maps(maps, classes, target, **options)
    torch.testing.assert_close(loss, exact_cross_entropy(rows, classes, target.flatten(), **options))
    call = functools.partial(exact_cross_entropy_of_maps, target=target, **options)
    assert torch.autograd.gradcheck(call, (maps, classes))


@pytest.mark.parametrize(
    ("maps", "target", "message"),
    [
        ((4, 3), (4,), r"allowed are \(N, D, h, w\) and \(N, H, W\)"),
        ((2, 3, 2, 2), (1, 4, 4), r"allowed are \(N, D, h, w\) and \(N, H, W\)"),
        ((2, 5, 2, 2), (2, 4, 4), "same embedding_dim"),
    ],
)
def test_maps_that_do_not_fit_are_refused(maps, target, message):
    with pytest.raises(ValueError, match=message):
        exact_cross_entropy_of_maps(
            torch.zeros(maps), torch.zeros(7, 3), torch.zeros(target, dtype=torch.int64)
        )


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


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("work_bytes", [2**25, 300])
@pytest.mark.parametrize("loss", [exact_cross_entropy, knn_cross_entropy, sampled_by_one_seed])
def test_embeddings_that_are_not_numbers_give_a_loss_that_is_none(loss, work_bytes, similarity):
    """It is the training that notices and names the images; the loss must not fail before."""
    pixels, classes, target = problem(20, 9, 4)
    value = loss(pixels * math.nan, classes, target, similarity=similarity, work_bytes=work_bytes)
    assert value.isnan()
    value.backward()


def test_gradients_accumulate_and_scale_with_the_loss():
    pixels, classes, target = problem(30, 20, 8)
    loss = exact_cross_entropy(pixels, classes, target)
    loss.backward(retain_graph=True)
    once = classes.grad.clone()
    (3 * loss).backward()
    torch.testing.assert_close(classes.grad, 4 * once)


def test_a_second_derivative_is_refused():
    pixels, classes, target = problem(5, 6, 4)
    gradient = torch.autograd.grad(exact_cross_entropy(pixels, classes, target), pixels, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="only once"):
        gradient.sum().backward()


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


def test_very_cold_logits_neither_overflow_nor_vanish():
    pixels, classes, target = problem(40, 30, 6, torch.float64)
    for similarity in SIMILARITIES:
        loss = exact_cross_entropy(
            pixels.float(), classes.float(), target, temperature=1e-3, similarity=similarity
        )
        expected = dense(pixels, classes, target, similarity, temperature=1e-3)
        torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)


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


def test_the_sampled_sum_of_exponentials_is_right_on_average():
    pixels, classes, target = problem(2, 60, 8)
    logits = dense_logits(pixels, classes, "distance", 0.5).detach()
    expected = logits.exp().sum(dim=1)
    generator = torch.Generator().manual_seed(1)
    sums = torch.zeros(2)
    draws = 300
    for _ in range(draws):
        # One pixel at a time gives its own term: loss = log(sum) - target logit.
        state = generator.get_state()
        for row in range(2):
            generator.set_state(state)
            one = sampled_cross_entropy(
                pixels[row : row + 1],
                classes,
                target[row : row + 1],
                num_negatives=6,
                generator=generator,
                temperature=0.5,
            )
            sums[row] += (one.detach() + logits[row, target[row]]).exp() / draws
    torch.testing.assert_close(sums, expected, rtol=0.06, atol=0)


def test_sampling_follows_its_generator_and_keeps_every_class_present():
    pixels, classes, target = problem(100, 200, 8)

    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return sampled_cross_entropy(pixels, classes, target % 20, num_negatives=15, generator=generator)

    assert draw(1).item() == draw(1).item()
    assert draw(1).item() != draw(2).item()
    touched = torch.autograd.grad(draw(1), classes)[0].abs().sum(dim=1) > 0
    assert touched[:20].all()
    assert touched.sum() == 20 + 15


def dense_separation(classes: Tensor, min_separation: float) -> Tensor:
    distances = torch.linalg.vector_norm(classes[:, None] - classes[None], dim=2)
    distances = distances + torch.diag(torch.full((len(classes),), math.inf))
    return (min_separation - distances.min(dim=1).values).clamp_min(0).mean()


@pytest.mark.parametrize("work_bytes", [2**25, 2_000])
def test_separation_is_that_of_the_whole_distance_matrix(work_bytes):
    classes = (0.1 * torch.randn(150, 4, dtype=torch.float64)).requires_grad_()
    loss = separation_loss(classes, min_separation=0.2, work_bytes=work_bytes)
    assert loss > 0
    expected = dense_separation(classes, 0.2)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(value, classes)[0] for value in (loss, expected)))


def test_separation_of_identical_and_of_single_classes_is_finite():
    same = torch.ones(5, 4, requires_grad=True)
    loss = separation_loss(same)
    loss.backward()
    assert loss.item() == pytest.approx(0.2)
    assert same.grad.isfinite().all()
    assert separation_loss(torch.ones(1, 4)).item() == 0


@pytest.mark.parametrize("loss", [exact_cross_entropy, knn_cross_entropy, sampled_cross_entropy])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": torch.tensor([0, 5, -1])}, "target contains 5; allowed are 0 to 4 and ignore_index -1"),
        ({"target": torch.tensor([0, -2, 1])}, "target contains -2; allowed are 0 to 4"),
        ({"target": torch.tensor([0, 1])}, r"target has shape \(2,\).*\(3,\) int64"),
        ({"target": torch.tensor([0.0, 1.0, 2.0])}, "dtype torch.float32"),
        ({"class_embeddings": torch.zeros(5, 7)}, "4 channels and class_embeddings 7"),
        ({"pixel_embeddings": torch.zeros(1, 4, 3)}, "pixel_embeddings has shape"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"similarity": "dot"}, "similarity is 'dot'; allowed are 'distance', 'cosine'"),
    ],
)
def test_wrong_arguments_are_named_with_what_is_allowed(loss, change, message):
    arguments = {
        "pixel_embeddings": torch.zeros(3, 4),
        "class_embeddings": torch.zeros(5, 4),
        "target": torch.tensor([0, 4, -1]),
    }
    with pytest.raises(ValueError, match=message):
        loss(**arguments | change)


@pytest.mark.parametrize("loss", [knn_cross_entropy, sampled_cross_entropy])
def test_no_negatives_are_refused_and_too_many_are_all(loss):
    assert loss(*problem(3, 5, 4), num_negatives=10**9).isfinite()
    with pytest.raises(ValueError, match="num_negatives is 0; allowed are 1 and more"):
        loss(*problem(3, 5, 4), num_negatives=0)


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
