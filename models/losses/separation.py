"""Keep the class embeddings apart: the paper's separation term, without a classes x classes matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from ..embeddings import WORK_BYTES, check_embeddings
from ..nearest import nearest_classes

_MAX_WORK_BYTES = 2 * 2**20  # C x C is small next to P x C: 2 MiB are enough
_MANY = 4096  # classes whose distances are computed together


def separation_loss(
    class_embeddings: Tensor, *, min_separation: float = 0.2, work_bytes: int = WORK_BYTES
) -> Tensor:
    """Compute (1/C) sum over c of max(0, min_separation - distance from c to the nearest other class).

    The nearest is searched without a C x C matrix, and the gradient goes to both classes of a pair. Two
    classes at exactly the same place get no gradient: the distance has no direction there. Memory grows with
    the pairs that lie too close, besides the gradient.

    Args:
        class_embeddings: (C, D) float.
        min_separation: least wanted Euclidean distance between two classes; the paper's code has 0.2.
        work_bytes: size of the work buffer of the search in bytes; no more than 2 MiB are used.

    Returns:
        Scalar; zero for a single class.

    Raises:
        ValueError: class_embeddings is not (C, D) floating, or min_separation is not positive.
    """
    check_embeddings(class_embeddings, class_embeddings)
    if not min_separation > 0:
        raise ValueError(f"min_separation is {min_separation}; allowed are distances above 0")
    num_classes = len(class_embeddings)
    with torch.autocast(class_embeddings.device.type, enabled=False):
        classes = class_embeddings if class_embeddings.dtype == torch.float64 else class_embeddings.float()
        if num_classes == 1:
            return classes.sum() * 0
        enough = min(work_bytes, _MAX_WORK_BYTES)
        two = nearest_classes(class_embeddings, class_embeddings, 2, work_bytes=enough)
        own = torch.arange(num_classes, device=two.device)
        other = torch.where(two[:, 0] == own, two[:, 1], two[:, 0])
        close = _closer_than(min_separation, classes.detach(), other)
        pairs = classes[torch.cat([close, other[close]])]
        distances = torch.linalg.vector_norm(pairs[: len(close)] - pairs[len(close) :], dim=1)
        return (min_separation - distances).sum() / num_classes


def _closer_than(distance: float, classes: Tensor, other: Tensor) -> Tensor:
    """Find the classes that lie closer to their `other` one (C,), some at a time: most do not."""
    gaps = [
        torch.linalg.vector_norm(some - classes[their_other], dim=1)
        for some, their_other in zip(classes.split(_MANY), other.split(_MANY), strict=True)
    ]
    return (~(torch.cat(gaps) >= distance)).nonzero()[:, 0]  # NaN is among them, and so in the loss
