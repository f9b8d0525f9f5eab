"""The trials of the embedding head: each changes what it says, and nothing after its context."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import embedding_trials as trials
from models.segmenter import SegmenterConfig, build_segmenter
from pipeline.config.load import load_settings
from pipeline.data.loading.batch import IGNORE_INDEX
from pipeline.train_step import loss
from pipeline.training import trainer
from tests.paths import ROOT

TEMPERATURE = 0.5


def _maps() -> tuple[Tensor, Tensor, Tensor]:
    """Return embeddings and classes of length 1, and a target with an unlabeled pixel."""
    generator = torch.Generator().manual_seed(0)
    output = F.normalize(torch.randn(2, 4, 3, 3, generator=generator), dim=1)
    classes = F.normalize(torch.randn(5, 4, generator=generator), dim=1)
    target = torch.randint(0, 5, (2, 6, 6), generator=generator)
    target[0, 0, 0] = IGNORE_INDEX
    return output, classes, target


def _upsampled(output: Tensor) -> Tensor:
    return F.interpolate(output, size=(6, 6), mode="bilinear", align_corners=False)


def test_a_margin_is_taken_from_the_cosine_of_the_target() -> None:
    output, classes, target = _maps()
    found = trials.with_margin(0.2)(output, classes, target, TEMPERATURE)
    cosines = torch.einsum("ndhw,cd->nchw", _upsampled(output), classes)
    losses = []
    for image, row, column in (target != IGNORE_INDEX).nonzero().tolist():
        logits = cosines[image, :, row, column].clone()
        logits[target[image, row, column]] -= 0.2
        losses.append(F.cross_entropy(logits / TEMPERATURE, target[image, row, column]))
    torch.testing.assert_close(found, torch.stack(losses).mean())


def test_embeddings_normalized_again_have_cosines_for_logits() -> None:
    output, classes, target = _maps()
    found = trials.normalized_again(output, classes, target, TEMPERATURE)
    cosines = F.cosine_similarity(_upsampled(output)[:, None], classes[None, :, :, None, None], dim=2)
    torch.testing.assert_close(
        found, F.cross_entropy(cosines / TEMPERATURE, target, ignore_index=IGNORE_INDEX)
    )


def test_a_learned_temperature_goes_down_the_slope_of_its_logarithm() -> None:
    output, classes, target = _maps()
    learned = trials.LearnedTemperature(0.1)

    def dense(logarithm: Tensor) -> Tensor:
        logits = torch.einsum("ndhw,cd->nchw", _upsampled(output), classes) / logarithm.exp()
        return F.cross_entropy(logits, target, ignore_index=IGNORE_INDEX)

    start = torch.tensor(TEMPERATURE).log().requires_grad_()
    (slope,) = torch.autograd.grad(dense(start), start)
    first = learned(output, classes, target, TEMPERATURE)
    torch.testing.assert_close(first, dense(start))
    first.backward()
    second = learned(output, classes, target, TEMPERATURE)
    torch.testing.assert_close(second, dense(start.detach() - 0.1 * slope))
    assert learned.logarithm is not None
    assert learned.logarithm.item() != pytest.approx(math.log(TEMPERATURE))


def test_a_trials_loss_and_table_are_in_force_within_their_context_only() -> None:
    before = (loss.map_cross_entropy, trainer.build_model)
    settings = load_settings(ROOT / "params.yaml", variant="embedding")
    with trials.with_loss(lambda *maps: torch.tensor(3.0)):
        found = loss.segmentation_losses(_segmenter(), *_maps()[::2], settings.loss)
    assert found.cross_entropy == 3.0
    with trials.with_table(trials.spread_rows):
        table = trainer.build_model(settings.model, 70).head.class_table
    torch.testing.assert_close(table.norm(dim=1), table.norm(dim=1).mean().expand(70))
    assert (loss.map_cross_entropy, trainer.build_model) == before


def _segmenter() -> trials.Segmenter:
    config = SegmenterConfig(
        num_classes=5, backbone="test_efficientnet", decoder="linear", decoder_channels=4
    )
    return build_segmenter(config)


def test_orthogonal_and_spread_rows_are_far_from_one_another() -> None:
    torch.manual_seed(0)
    rows = trials.orthogonal_rows(trials.rows_of_length(2.0)(torch.randn(6, 4)))
    torch.testing.assert_close(rows[:4] @ rows[:4].T, 4 * torch.eye(4))
    torch.testing.assert_close(rows.norm(dim=1), torch.full((6,), 2.0))
    # best: the corners of a tetrahedron
    spread = trials.spread_rows(trials.rows_of_length(1.0)(torch.randn(4, 3)), steps=200)
    cosines = (spread @ spread.T)[~torch.eye(4, dtype=torch.bool)]
    torch.testing.assert_close(cosines, torch.full((12,), -1 / 3), atol=0.02, rtol=0)
