"""The sampled loss: right on average, drawn by its generator."""

from __future__ import annotations

import torch

from models.losses import sampled_cross_entropy
from tests.models.losses.dense import dense_logits, problem


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
