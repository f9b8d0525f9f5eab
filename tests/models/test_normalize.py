"""Unit vectors: values and both derivatives are those of F.normalize, in fewer copies."""

import pytest
import torch
import torch.nn.functional as F

from models.normalize import unit_length
from tests.models.allocation import extra_bytes


@pytest.mark.parametrize("shape", [(7, 5), (2, 5, 3, 4)], ids=["rows", "maps"])
def test_values_and_gradients_are_those_of_normalize(shape):
    vectors = torch.randn(shape).requires_grad_()
    with torch.no_grad():
        vectors[0] *= 1e-8  # shorter than what is divided by
    found, wanted = unit_length(vectors), F.normalize(vectors, dim=1, eps=1e-6)
    assert torch.equal(found, wanted)
    assert torch.equal(unit_length(vectors.detach()), wanted)
    weights = torch.randn(shape)
    ours, theirs = (torch.autograd.grad((unit * weights).sum(), vectors)[0] for unit in (found, wanted))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_second_derivatives_are_those_of_normalize():
    vectors, weights = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)

    def second(normalize):
        value = (normalize(vectors) * weights).square().sum()
        gradient = torch.autograd.grad(value, vectors, create_graph=True)[0]
        return torch.autograd.grad(gradient.square().sum(), vectors)[0]

    found, wanted = second(unit_length), second(lambda rows: F.normalize(rows, dim=1, eps=1e-6))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_it_is_in_float32_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert unit_length(torch.randn(2, 3, dtype=torch.bfloat16).requires_grad_()).dtype == torch.float32


def test_the_gradient_takes_one_copy_beside_the_one_handed_over():
    """F.normalize takes three."""
    vectors, given = torch.randn(20_000, 64, requires_grad=True), torch.randn(20_000, 64)
    result, lengths = vectors.numel() * 4, 20_000 * 4

    def call():
        torch.autograd.grad(unit_length(vectors), vectors, given)

    assert extra_bytes(call) <= 2 * result + 4 * lengths  # the unit vectors and the gradient
