"""Share what every function of pixel and class embeddings needs: options, checks and numerical precision."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, ParamSpec, TypeVar

import torch
from torch import Tensor

Similarity = Literal["distance", "cosine"]
SIMILARITIES = ("distance", "cosine")

WORK_BYTES = 32 * 2**20
"""Default work buffer: what a search or a loss may hold besides its inputs, results and gradients."""

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class LossOptions:
    """Hold the options that all losses share, checked.

    Attributes:
        temperature: divides the similarities; the paper multiplies by 20, so 0.05.
        similarity: "distance" for logits -|e - w| / temperature, "cosine" for e.w / temperature.
        ignore_index: target of pixels that take no part.
        work_bytes: size of the work buffer in bytes.

    Raises:
        ValueError: an unknown similarity, a temperature that is not positive and finite.
    """

    temperature: float = 0.05
    similarity: Similarity = "distance"
    ignore_index: int = -1
    work_bytes: int = WORK_BYTES

    def __post_init__(self) -> None:
        check_similarity(self.similarity)
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature is {self.temperature}; allowed are finite numbers above 0")


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


def check_rows(pixel_embeddings: Tensor, class_embeddings: Tensor, target: Tensor) -> None:
    """Refuse anything but embeddings (P, D) and (C, D) and a target (P,) int64 on their device."""
    check_embeddings(pixel_embeddings, class_embeddings)
    if target.dtype != torch.int64 or target.shape != pixel_embeddings.shape[:1]:
        raise ValueError(
            f"target has shape {tuple(target.shape)} and dtype {target.dtype}; expected is "
            f"({len(pixel_embeddings)},) int64, one class for each row of pixel_embeddings"
        )
    if target.device != pixel_embeddings.device:
        raise ValueError(f"target is on {target.device}, the embeddings are on {pixel_embeddings.device}")


def check_maps(pixel_embeddings: Tensor, class_embeddings: Tensor, target: Tensor) -> None:
    """Refuse anything but embeddings (N, D, h, w) and (C, D) and a target (N, H, W) int64."""
    if pixel_embeddings.dim() != 4 or target.dim() != 3 or len(pixel_embeddings) != len(target):
        raise ValueError(
            f"pixel_embeddings has shape {tuple(pixel_embeddings.shape)} and target {tuple(target.shape)}; "
            "allowed are (N, D, h, w) and (N, H, W)"
        )
    no_rows = pixel_embeddings[:0].movedim(1, -1).flatten(0, 2)  # (0, D): D, dtype and device of the maps
    check_rows(no_rows, class_embeddings, target.flatten()[:0])


def check_similarity(similarity: str) -> None:
    """Refuse a similarity other than the two known ones."""
    if similarity not in SIMILARITIES:
        raise ValueError(f"similarity is {similarity!r}; allowed are {', '.join(map(repr, SIMILARITIES))}")


def check_target(target: Tensor, num_classes: int, ignore_index: int) -> None:
    """Refuse a target that is neither a class nor `ignore_index`.

    The host waits for the device here. The fused kernels skip this check and return NaN instead.
    """
    if target.numel() == 0:
        return
    lowest, highest = target.masked_fill(target == ignore_index, 0).aminmax()
    wrong = int(lowest) if lowest < 0 else int(highest)
    if not 0 <= wrong < num_classes:
        raise ValueError(
            f"target contains {wrong}; allowed are 0 to {num_classes - 1} and ignore_index {ignore_index}"
        )


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """Return the dtype to accumulate in: float64 where an input has it, else float32."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


@contextmanager
def full_precision(tensor: Tensor) -> Iterator[None]:
    """Compute float32 products in full float32 on the tensor's device: no autocast, no TensorFloat32.

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


def never_compiled(function: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
    """Keep a function out of compiled graphs, as `torch.compiler.disable` does.

    That one imports Dynamo and Triton as soon as it decorates. Here this waits for the first call, so that
    importing a loss needs torch alone.
    """
    disabled: Callable[_Parameters, _Result] | None = None

    @functools.wraps(function)
    def call(*arguments: _Parameters.args, **options: _Parameters.kwargs) -> _Result:
        nonlocal disabled
        if disabled is None:
            disabled = torch.compiler.disable(function)
        return disabled(*arguments, **options)

    return call
