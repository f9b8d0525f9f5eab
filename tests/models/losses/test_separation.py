"""The separation term against the whole distance matrix."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models.losses import separation_loss


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


def test_separation_of_a_class_that_is_not_a_number_is_none_either():
    classes = torch.randn(5, 4)
    classes[2] = math.nan
    assert separation_loss(classes).isnan()
