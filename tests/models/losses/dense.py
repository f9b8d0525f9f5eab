"""What the losses are held against: cross-entropy on all logits, written out here a second time."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from models.losses import exact_cross_entropy, knn_cross_entropy, sampled_cross_entropy

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


def problem(num_pixels, num_classes, dim, dtype=torch.float32, ignored=0.0, ignore_index=-100):
    pixels = F.normalize(torch.randn(num_pixels, dim, dtype=dtype), dim=1).requires_grad_()
    classes = F.normalize(torch.randn(num_classes, dim, dtype=dtype), dim=1).requires_grad_()
    target = torch.randint(0, num_classes, (num_pixels,))
    target[torch.rand(num_pixels) < ignored] = ignore_index
    return pixels, classes, target


def dense_logits(pixels: Tensor, classes: Tensor, similarity: str, temperature: float) -> Tensor:
    if similarity == "cosine":
        return pixels @ classes.T / temperature
    return -torch.linalg.vector_norm(pixels[:, None] - classes[None], dim=2) / temperature


def dense(pixels, classes, target, similarity="distance", temperature=0.05, ignore_index=-100):
    logits = dense_logits(pixels, classes, similarity, temperature)
    return F.cross_entropy(logits, target, ignore_index=ignore_index)


def assert_same_loss_and_gradients(loss, expected, inputs, tolerance=1e-5):
    torch.testing.assert_close(loss, expected, rtol=tolerance, atol=tolerance)
    gradients = torch.autograd.grad(loss, inputs)
    for gradient, wanted in zip(gradients, torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=tolerance * float(wanted.abs().max()))
