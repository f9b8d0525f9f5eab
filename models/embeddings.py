"""Share what every function of pixel and class embeddings needs: options, checks and numerical precision."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, ParamSpec, TypeVar

import torch
from torch import Tensor

Similarity = Literal["distance", "dot", "cosine"]
SIMILARITIES = ("distance", "dot", "cosine")
Reduction = Literal["mean", "sum"]
IGNORE_INDEX = -100
"""Default target of pixels that take no part, as in `torch.nn.functional.cross_entropy`."""

WORK_BYTES = 32 * 2**20
"""Default work buffer: what a search or a loss may hold besides its inputs, results and gradients."""

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class LossOptions:
    """Hold the options that all losses share, checked.

    Attributes:
        temperature: divides the similarities; the paper multiplies by 20, so 0.05; 1 for a classifier.
        similarity: "distance" for logits -|e - w| / temperature, "dot" for e.w / temperature; "cosine" is
            another name for "dot", since for unit vectors that is the cosine.
        ignore_index: target of pixels that take no part.
        work_bytes: size of the work buffer in bytes.
        label_smoothing: share of the target spread evenly over all classes, 0..1; for "dot" only.
        reduction: "mean" over the labeled pixels (weighted by `class_weights`), or "sum".
        align_corners: how maps are upsampled, as in `torch.nn.functional.interpolate`.

    Raises:
        ValueError: an unknown similarity or reduction, a temperature that is not positive and finite, a label
            smoothing outside 0..1 or of distances.
    """

    temperature: float = 0.05
    similarity: Similarity = "distance"
    ignore_index: int = IGNORE_INDEX
    work_bytes: int = WORK_BYTES
    label_smoothing: float = 0.0
    reduction: Reduction = "mean"
    align_corners: bool = False

    def __post_init__(self) -> None:
        check_similarity(self.similarity)
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature is {self.temperature}; allowed are finite numbers above 0")
        if not 0 <= self.label_smoothing <= 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; allowed are 0 to 1")
        if self.label_smoothing and not self.is_dot:
            raise ValueError(
                f"label_smoothing is {self.label_smoothing} and similarity {self.similarity!r}; it needs "
                "similarity 'dot', for which the sum of all logits is one product"
            )
        if self.reduction not in ("mean", "sum"):
            raise ValueError(f"reduction is {self.reduction!r}; allowed are 'mean' and 'sum'")

    @property
    def is_dot(self) -> bool:
        """Tell whether the logits are inner products."""
        return self.similarity != "distance"


def default_temperature(similarity: str) -> float:
    """Return 1 for "dot", the logits of a classifier, and the paper's 0.05 for unit vectors."""
    return 1.0 if similarity == "dot" else 0.05


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
    if target.dtype != torch.int64:
        raise ValueError(
            f"target has dtype {target.dtype}; expected is int64: target.long() converts whole numbers"
        )
    no_rows = pixel_embeddings[:0].movedim(1, -1).flatten(0, 2)  # (0, D): D, dtype and device of the maps
    check_rows(no_rows, class_embeddings, target.flatten()[:0])


def check_similarity(similarity: str) -> None:
    """Refuse a similarity other than the two known ones."""
    if similarity not in SIMILARITIES:
        raise ValueError(f"similarity is {similarity!r}; allowed are {', '.join(map(repr, SIMILARITIES))}")


def class_matrix(class_embeddings: Tensor) -> Tensor:
    """Return class embeddings (C, D), or the weight (C, D, 1, 1) of a 1 x 1 convolution, as (C, D)."""
    if class_embeddings.dim() == 4 and class_embeddings.shape[2:] == (1, 1):
        return class_embeddings.flatten(1)
    return class_embeddings


def check_class_vectors(num_classes: int, like: Tensor, **vectors: Tensor | None) -> None:
    """Refuse what is not (C,) floating on the device of `like`: a bias, or weights of the classes."""
    for name, vector in vectors.items():
        if vector is None:
            continue
        if vector.shape != (num_classes,) or not vector.is_floating_point():
            raise ValueError(
                f"{name} has shape {tuple(vector.shape)} and dtype {vector.dtype}; allowed is a floating "
                f"({num_classes},) tensor, a number for each class"
            )
        if vector.device != like.device:
            raise ValueError(f"{name} is on {vector.device}, the embeddings are on {like.device}")


def check_search_bias(similarity: str, bias: Tensor | None) -> None:
    """Refuse a bias of distances: their search orders squared distances, to which nothing can be added."""
    if bias is not None and similarity == "distance":
        raise ValueError("bias is given and similarity is 'distance'; a search takes a bias with 'dot' only")


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

    That one imports Dynamo and Triton as soon as it decorates, which takes a second. Here this waits for the
    first call in a process that has imported Dynamo: another one compiles no graphs.
    """
    disabled: Callable[_Parameters, _Result] | None = None

    @functools.wraps(function)
    def call(*arguments: _Parameters.args, **options: _Parameters.kwargs) -> _Result:
        nonlocal disabled
        if "torch._dynamo" not in sys.modules:
            return function(*arguments, **options)
        if disabled is None:
            disabled = torch.compiler.disable(function)
        return disabled(*arguments, **options)

    return call
