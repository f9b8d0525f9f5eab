"""From the stride-4 output to the loss, against the plain computation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from models.segmenter import SegmenterConfig, build_segmenter
from pipeline.config.schema import LossSettings, Settings
from pipeline.train_step.long_tail import ClassFrequencies, LongTail
from pipeline.train_step.loss import draw_pixels, labeled_rows, segmentation_losses


def build(head: str, num_classes: int = 37):
    torch.manual_seed(0)
    return build_segmenter(
        SegmenterConfig(
            backbone="test_resnet", decoder_channels=8, embedding_dim=6, num_classes=num_classes, head=head
        )
    )


@pytest.fixture
def target() -> torch.Tensor:
    target = torch.randint(0, 37, (2, 30, 42), generator=torch.Generator().manual_seed(1))
    target[:, :7] = -1
    return target


@pytest.mark.parametrize("name", ["exact", "knn", "sampled"])
@pytest.mark.parametrize("similarity", ["distance", "cosine"])
def test_with_all_negatives_every_loss_is_the_full_cross_entropy(
    name: str, similarity: str, target: torch.Tensor
) -> None:
    segmenter = build("embedding")
    output = segmenter(torch.rand(2, 3, 30, 42))
    settings = LossSettings(name=name, similarity=similarity, num_negatives=36, temperature=0.1)
    losses = segmentation_losses(segmenter, output, target, settings)
    upsampled = F.interpolate(output, size=(30, 42), mode="bilinear", align_corners=False).movedim(1, -1)
    classes = segmenter.head.class_embeddings
    logits = -torch.cdist(upsampled.reshape(-1, 6), classes, compute_mode="donot_use_mm_for_euclid_dist")
    if similarity == "cosine":
        logits = upsampled.reshape(-1, 6) @ classes.T
    expected = F.cross_entropy(logits / 0.1, target.flatten(), ignore_index=-1)
    torch.testing.assert_close(losses.cross_entropy, expected.detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(losses.total.detach(), losses.cross_entropy + losses.separation)


@pytest.mark.parametrize("name", ["dense", "exact", "knn", "sampled"])
def test_every_loss_of_the_softmax_head_is_the_cross_entropy_of_its_logits(
    name: str, target: torch.Tensor
) -> None:
    segmenter = build("softmax")
    output = segmenter(torch.rand(2, 3, 30, 42))
    losses = segmentation_losses(segmenter, output, target, LossSettings(name=name, num_negatives=36))
    logits = segmenter.head.logits(output)
    upsampled = F.interpolate(logits, size=(30, 42), mode="bilinear", align_corners=False)
    expected = F.cross_entropy(upsampled, target, ignore_index=-1)
    torch.testing.assert_close(losses.total, expected)
    assert losses.separation == 0
    parameters = [segmenter.head.classifier.weight, segmenter.head.classifier.bias]
    ours, theirs = (
        torch.autograd.grad(loss, parameters, retain_graph=True) for loss in (losses.total, expected)
    )
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("head", ["embedding", "softmax"])
def test_a_batch_without_labeled_pixels_has_a_finite_zero_loss_and_gradients(head: str) -> None:
    segmenter = build(head)
    target = torch.full((1, 32, 32), -1)
    losses = segmentation_losses(
        segmenter, segmenter(torch.rand(1, 3, 32, 32)), target, LossSettings(separation_weight=0)
    )
    assert losses.total == 0
    losses.total.backward()
    assert all(
        parameter.grad is None or parameter.grad.isfinite().all() for parameter in segmenter.parameters()
    )


def test_separation_is_weighted_and_can_be_left_out(target: torch.Tensor) -> None:
    segmenter = build("embedding")
    with torch.no_grad():
        next(p for p in segmenter.head.parameters() if p.shape == (37, 6))[:] = (
            1.0  # all classes in one place
        )
    output = segmenter(torch.rand(2, 3, 30, 42))
    doubled = segmentation_losses(segmenter, output, target, LossSettings(separation_weight=2.0))
    assert doubled.separation == pytest.approx(0.2, abs=1e-3)
    assert doubled.total.item() == pytest.approx((doubled.cross_entropy + 2 * doubled.separation).item())
    without = segmentation_losses(segmenter, output, target, LossSettings(separation_weight=0.0))
    assert without.separation == 0


@pytest.mark.parametrize("head", ["embedding", "softmax"])
def test_a_budget_of_all_pixels_is_no_budget(head: str, target: torch.Tensor) -> None:
    segmenter = build(head)
    output = segmenter(torch.rand(2, 3, 30, 42))
    whole = segmentation_losses(segmenter, output, target, LossSettings())
    enough = segmentation_losses(segmenter, output, target, LossSettings(pixel_budget=2 * 30 * 42))
    torch.testing.assert_close(enough.cross_entropy, whole.cross_entropy)


@pytest.mark.parametrize("head", ["embedding", "softmax"])
def test_a_pixel_budget_estimates_the_loss_over_all_labeled_pixels(head: str, target: torch.Tensor) -> None:
    segmenter = build(head)
    output = segmenter(torch.rand(2, 3, 30, 42)).detach()
    whole = float(segmentation_losses(segmenter, output, target, LossSettings()).cross_entropy)
    generator = torch.Generator().manual_seed(3)
    budget = LossSettings(pixel_budget=200)
    draws = [
        float(segmentation_losses(segmenter, output, target, budget, generator).cross_entropy)
        for _ in range(60)
    ]
    spread = torch.tensor(draws).std()
    assert spread > 0
    assert abs(sum(draws) / 60 - whole) < 4 * float(spread) / 60**0.5


def test_a_budgets_rows_are_those_of_the_pixels_drawn(target: torch.Tensor) -> None:
    output = torch.randn(2, 5, 8, 11)
    every_row, every_target = labeled_rows(output, target, None)
    rows, targets = labeled_rows(output, target, 40, torch.Generator().manual_seed(0))
    pixels = draw_pixels(target.flatten(), 40, torch.Generator().manual_seed(0))
    torch.testing.assert_close(rows, every_row[pixels])
    assert torch.equal(targets, every_target[pixels])


def test_a_budgets_pixels_are_labeled_distinct_and_the_generators() -> None:
    targets = torch.full((50,), -1)
    targets[10:40] = 3

    def draw(seed: int) -> list[int]:
        return draw_pixels(targets, 7, torch.Generator().manual_seed(seed)).tolist()

    assert len(set(draw(0))) == 7
    assert set(draw(0)) <= set(range(10, 40))
    assert draw(0) == draw(0) != draw(1)
    assert draw_pixels(targets, 30).tolist() == list(range(10, 40))


PIXELS = [0, *(10 ** (index % 5) + index for index in range(36))]  # one class is nowhere
IMAGES = [0, *(1 + 40 * (index % 7) for index in range(36))]


@pytest.mark.parametrize(
    ("head", "name"), [("softmax", "exact"), ("softmax", "dense"), ("embedding", "exact")]
)
@pytest.mark.parametrize("similarity", ["distance", "cosine"])
@pytest.mark.parametrize("weights", [None, "effective_number"])
def test_a_long_tail_is_balanced_by_offsets_and_weights(
    head: str, name: str, similarity: str, weights: str | None, target: torch.Tensor
) -> None:
    """The formulas of Menon et al. and of Cui et al., written out over all logits at full resolution."""
    segmenter = build(head)
    output = segmenter(torch.rand(2, 3, 30, 42))
    settings = LossSettings(
        name=name, similarity=similarity, temperature=0.1, logit_adjustment=1.5, class_weights=weights
    )
    long_tail = LongTail.of(settings, ClassFrequencies(PIXELS, IMAGES), output.device)
    losses = segmentation_losses(segmenter, output, target, settings, long_tail=long_tail)
    if head == "softmax":
        logits = segmenter.head.logits(output)
        logits = F.interpolate(logits, size=(30, 42), mode="bilinear", align_corners=False).movedim(1, -1)
    else:
        rows = F.interpolate(output, size=(30, 42), mode="bilinear", align_corners=False).movedim(1, -1)
        classes = segmenter.head.class_embeddings
        logits = rows @ classes.T if similarity == "cosine" else -(rows[..., None, :] - classes).norm(dim=-1)
        logits = logits / 0.1
    pixels = torch.tensor([max(one, 1) for one in PIXELS], dtype=torch.float32)
    logits = logits + 1.5 * torch.log(pixels / pixels.sum())
    by_class = None
    if weights:
        raw = [0.001 / (1 - 0.999**n) if n else 0.0 for n in IMAGES]
        mean = sum(raw) / 36
        by_class = torch.tensor([one / mean if one else 1.0 for one in raw])
    expected = F.cross_entropy(logits.reshape(-1, 37), target.flatten(), by_class, ignore_index=-1)
    torch.testing.assert_close(losses.cross_entropy, expected.detach(), rtol=1e-4, atol=1e-4)
    nothing = segmentation_losses(
        segmenter, output, torch.full_like(target, -1), settings, long_tail=long_tail
    )
    assert nothing.cross_entropy == 0


def test_off_adds_nothing_at_all(target: torch.Tensor) -> None:
    long_tail = LongTail.of(LossSettings(), ClassFrequencies(PIXELS, IMAGES), torch.device("cpu"))
    assert long_tail == LongTail(None, None)
    segmenter = build("softmax")
    output = segmenter(torch.rand(2, 3, 30, 42))
    plain = segmentation_losses(segmenter, output, target, LossSettings())
    assert (
        plain.total
        == segmentation_losses(segmenter, output, target, LossSettings(), long_tail=long_tail).total
    )


def test_a_loss_that_has_no_place_for_it_is_refused() -> None:
    needed = {"project": "/p", "data": {"root": "data"}}
    by_distance, weighted = (
        {"name": "knn", "logit_adjustment": 1},
        {"name": "sampled", "class_weights": "effective_number"},
    )
    for loss, said in (
        (by_distance, "nearest classes by distance"),
        (weighted, "only the losses exact and dense"),
    ):
        with pytest.raises(ValueError, match=said):
            Settings.model_validate({**needed, "loss": loss})
    allowed = Settings.model_validate({**needed, "model": {"head": "softmax"}, "loss": by_distance})
    assert allowed.flat()["loss.logit_adjustment"] == 1
    assert "loss.logit_adjustment" not in Settings.model_validate(needed).flat()  # older trainings go on
