"""The paper's loss: the target and its nearest others."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

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
