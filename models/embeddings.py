"""TODO"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

Similarity = Literal["distance", "cosine"]


SIMILARITIES = ("distance", "cosine")


WORK_BYTES = 32 * 2**20
"""Default work buffer: what a search or a loss may hold besides its inputs, results and gradients."""


def check_embeddings(pixel_embeddings: Tensor, class_embeddings: Tensor) -> None:
    """Refuse embeddings that are not (P, D) and (C, D) with the same D, floating, on one device."""
    for name, tensor in (("pixel_embeddings", pixel_embeddings), ("class_embeddings", class_embeddings)):
        if tensor.dim() != 2 or not tensor.is_floating_point():
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)} and dtype {tensor.dtype}; "
                "allowed is a floating (rows, embedding_dim) tensor"
            )
    if pixel_embeddings.shape[1] != class_embeddings.shape[1]:
        raise ValueError(
            f"pixel_embeddings have {pixel_embeddings.shape[1]} channels and class_embeddings "
            f"{class_embeddings.shape[1]}; both must have the same embedding_dim"
        )
    if pixel_embeddings.device != class_embeddings.device:
        raise ValueError(
            f"pixel_embeddings are on {pixel_embeddings.device} and class_embeddings on "
            f"{class_embeddings.device}; move one of them"
        )
    if len(class_embeddings) == 0:
        raise ValueError("class_embeddings has no rows; at least one class is needed")


def check_similarity(similarity: str) -> None:
    """Refuse a similarity other than the two known ones."""
    if similarity not in SIMILARITIES:
        raise ValueError(f"similarity is {similarity!r}; allowed are {', '.join(map(repr, SIMILARITIES))}")


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """Tell the dtype to accumulate in: float64 where an input has it, else float32."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


@contextmanager
def full_precision(tensor: Tensor) -> Iterator[None]:
    """Keep float32 products exact on the tensor's device: no autocast, no TensorFloat32.

    A squared distance is a difference of products; with ten bits of mantissa little of it would be left.
    """
    before = torch.get_float32_matmul_precision()
    if before != "highest":
        torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(tensor.device.type, enabled=False):
            yield
    finally:
        if before != "highest":
            torch.set_float32_matmul_precision(before)


def check_loss_inputs(
    pixel_embeddings: Tensor,
    class_embeddings: Tensor,
    target: Tensor,
    temperature: float,
    similarity: str,
) -> None:
    check_embeddings(pixel_embeddings, class_embeddings)
    check_similarity(similarity)
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature is {temperature}; allowed are finite numbers above 0")
    if target.dtype != torch.int64 or target.shape != pixel_embeddings.shape[:1]:
        raise ValueError(
            f"target has shape {tuple(target.shape)} and dtype {target.dtype}; expected is "
            f"({len(pixel_embeddings)},) int64, one class for each row of pixel_embeddings"
        )
    if target.device != pixel_embeddings.device:
        raise ValueError(f"target is on {target.device}, the embeddings are on {pixel_embeddings.device}")


def check_target(target: Tensor, num_classes: int, ignore_index: int) -> None:
    """Looks at every target, for which the host waits: the fused kernels answer with NaN instead."""
    if target.numel() == 0:
        return
    lowest, highest = target.masked_fill(target == ignore_index, 0).aminmax()
    wrong = int(lowest) if lowest < 0 else int(highest)
    if not 0 <= wrong < num_classes:
        raise ValueError(
            f"target contains {wrong}; allowed are 0 to {num_classes - 1} and ignore_index {ignore_index}"
        )
