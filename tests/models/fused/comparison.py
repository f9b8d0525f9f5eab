"""What the fused kernels are held against: inputs, the plain formulas, and how near they must come."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from models import fused
from models.embeddings import LossOptions
from models.gradients import keep_gradients
from models.tiled.cross_entropy import cross_entropy_of_rows
from models.tiled.cross_entropy_of_maps import cross_entropy_of_maps
from tests.interpreter import WHY_NOT

HAS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAS_GPU else "cpu"
needs_triton = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))


def needs_gpu(test: Any) -> Any:
    """For tests that are marked `gpu`, and skipped where there is none."""
    reason = "no CUDA device: half precision and large sizes need one"
    return pytest.mark.gpu(pytest.mark.skipif(not HAS_GPU, reason=reason)(test))


def unit_rows(count: int, dim: int, seed: int = 0) -> torch.Tensor:
    rows = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))
    return F.normalize(rows, dim=1).to(DEVICE)


def labels(count: int, num_classes: int, seed: int = 0, ignored: int = -100) -> torch.Tensor:
    """Random classes; every fifth pixel is unlabeled."""
    target = torch.randint(0, num_classes, (count,), generator=torch.Generator().manual_seed(seed))
    target[::5] = ignored
    return target.to(DEVICE)


def plain_logits(
    pixels: torch.Tensor, classes: torch.Tensor, similarity: str, temperature: float
) -> torch.Tensor:
    if similarity == "cosine":
        return pixels @ classes.T / temperature
    differences = pixels[:, None] - classes[None]
    return -differences.square().sum(2).clamp(min=1e-30).sqrt() / temperature


def plain_loss(
    pixels: torch.Tensor,
    classes: torch.Tensor,
    target: torch.Tensor,
    *,
    similarity: str = "distance",
    temperature: float = 0.05,
    ignore_index: int = -100,
) -> torch.Tensor:
    """The definition, in float64, with all pixels x classes logits."""
    logits = plain_logits(pixels.double(), classes.double(), similarity, temperature)
    return F.cross_entropy(logits, target, ignore_index=ignore_index)


def fused_loss(
    pixels: torch.Tensor, classes: torch.Tensor, target: torch.Tensor, **options: Any
) -> torch.Tensor:
    """The kernels, of rows or maps."""
    return fused.fused_exact_cross_entropy(pixels, classes, target, LossOptions(**options))


def tiled_loss(
    pixels: torch.Tensor, classes: torch.Tensor, target: torch.Tensor, **options: Any
) -> torch.Tensor:
    """The implementation in plain torch, of rows or maps, even where the kernels apply."""
    of_all: dict[str, Any] = {"class_weights": None, "options": LossOptions(**options), "target": target}
    if pixels.dim() == 2:
        return keep_gradients(functools.partial(cross_entropy_of_rows, **of_all), pixels, classes, None)
    compute = functools.partial(cross_entropy_of_maps, pixels=None, **of_all)
    return keep_gradients(compute, pixels, classes, None)


def with_gradients(function: Any, *inputs: torch.Tensor, **options: Any) -> tuple[torch.Tensor, ...]:
    """(loss, gradient of the first input, gradient of the second) for the loss times 3."""
    first, second = (tensor.detach().clone().requires_grad_() for tensor in inputs[:2])
    loss = function(first, second, *inputs[2:], **options)
    (3 * loss).backward()
    assert first.grad is not None
    assert second.grad is not None
    return loss.detach(), first.grad, second.grad


def assert_same(
    found: tuple[torch.Tensor, ...], wanted: tuple[torch.Tensor, ...], tolerance: float = 3e-5
) -> None:
    """The loss to 1e-5; gradients to `tolerance` of their largest entry (see `launch.kernel_constants`)."""
    torch.testing.assert_close(found[0].double(), wanted[0].double(), rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(found[1:], wanted[1:], strict=True):
        largest = float(theirs.abs().max())
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=0, atol=tolerance * largest)


def upsampled_plain_loss(
    maps: torch.Tensor, classes: torch.Tensor, target: torch.Tensor, **options: Any
) -> torch.Tensor:
    full = F.interpolate(maps.double(), size=target.shape[1:], mode="bilinear", align_corners=False)
    return plain_loss(
        full.permute(0, 2, 3, 1).reshape(-1, maps.shape[1]), classes, target.reshape(-1), **options
    )
