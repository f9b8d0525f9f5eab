"""The examples run, and what they train gets better."""

from __future__ import annotations

import pytest

from examples import head_on_smp, loss_in_your_training

pytestmark = pytest.mark.training


def test_the_exact_loss_trains_a_network_of_ones_own() -> None:
    losses = loss_in_your_training.main(steps=8)
    assert losses[-1] < losses[0]


def test_an_embedding_head_trains_on_a_network_of_segmentation_models_pytorch() -> None:
    losses = head_on_smp.main(steps=3)
    assert losses[-1] < losses[0]
