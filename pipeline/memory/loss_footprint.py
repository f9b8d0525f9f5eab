"""Stand in for the losses under FakeTensorMode: allocate the same memory, compute nothing.

A fake tensor has a shape but no values. The losses need values (which pixels are labeled, which class is
nearest) and run thousands of chunks. So the prediction runs a stand-in that allocates what the loss does: a
gradient for each input, and its work memory. The size of the work memory is measured: the real loss runs on a
small real input under the same tracker.
"""

from __future__ import annotations

import contextlib
import functools
import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.compiled import nearest_of_maps
from models.embeddings import LossOptions
from models.gradients import scaled_gradients
from models.heads import SoftmaxHead
from models.implementation import forced, implementation_on
from models.losses.separation import separation_loss
from models.segmenter import Segmenter
from models.upsampling import full_resolution_rows, rows_of_pixels, whole_factor
from pipeline.config.schema import LossSettings
from pipeline.runtime.device import MIB
from pipeline.train_step.loss import (
    Classes,
    Losses,
    dense_logits,
    dense_losses,
    map_cross_entropy,
    needs_separation,
    row_cross_entropy,
    takes_maps,
)

_FEW_CLASSES = 512  # as large a tile as any number of classes has, and pixels prepared for no more than that
_MANY_PIXELS = 2**16
_FEW_PIXELS = 2**8


class PeakTracker(TorchDispatchMode):
    """Track the bytes of all tensors alive, and their peak.

    A storage counts once, from the operator that returns it to the end of its last tensor. The same bytes as
    in torch's private `torch.distributed._tools.mem_tracker.MemTracker`, which also attributes them to
    modules and takes longer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.current = self.peak = 0
        self._storages: dict[int, tuple[weakref.ref[torch.UntypedStorage], int]] = {}

    def track(self, *tensors: Tensor) -> None:
        """Count tensors that were made outside."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key, size = id(storage), storage.nbytes()
            reference, before = self._storages.get(key, (None, 0))
            if reference is None:
                reference = weakref.ref(storage, functools.partial(self._forget, key))
            if size != before:
                self._storages[key] = reference, size
                self.current += size - before
        self.peak = max(self.peak, self.current)

    def _forget(self, key: int, _: object) -> None:
        self.current -= self._storages.pop(key)[1]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator, and count what it returns."""
        result = func(*args, **(kwargs or {}))
        self.track(*(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)))
        return result


@dataclass(frozen=True)
class WorkMemory:
    """Hold the bytes that a loss allocates for a while, besides its inputs and their gradients."""

    fixed: int
    per_pixel: float
    separation: int

    def of_cross_entropy(self, num_pixels: int) -> int:
        """Return the bytes at `num_pixels` labeled pixels."""
        return self.fixed + math.ceil(self.per_pixel * num_pixels)


@dataclass(frozen=True)
class PixelSource:
    """Say where a loss has its pixels from: rows of their own, or maps at low resolution.

    Attributes:
        num_pixels: that are compared with the classes in a step.
        maps: whether they are interpolated from maps while the loss is computed.
        factor: of the upsampling where it is a whole number and all pixels are compared.
    """

    num_pixels: int
    maps: bool = False
    factor: int | None = None

    @classmethod
    def of(
        cls,
        segmenter: Segmenter,
        output_size: Sequence[int],
        target_shape: Sequence[int],
        settings: LossSettings,
    ) -> PixelSource:
        """Return that of `segmentation_losses` for a network, (h, w) and (N, H, W)."""
        in_step, budget = math.prod(target_shape), settings.pixel_budget
        compared = min(in_step, budget or in_step)
        if not _compares_maps(segmenter, output_size, target_shape, settings):  # upsampled before
            return cls(compared)
        factor = whole_factor(output_size, target_shape[1:]) if budget is None else None
        return cls(compared, True, factor)


def _compares_maps(
    segmenter: Segmenter, output_size: Sequence[int], target_shape: Sequence[int], settings: LossSettings
) -> bool:
    """Tell whether the loss makes no rows of the output, as `knn` does where no compiled code compares maps.

    The loss of a GPU is measured in plain torch.
    """
    if settings.name != "knn":
        return takes_maps(settings)
    if torch.cuda.is_available() or implementation_on(torch.device("cpu")) != "compiled":
        return False
    head = segmenter.head
    similarity = "dot" if isinstance(head, SoftmaxHead) else settings.similarity
    options = LossOptions(similarity=similarity, work_bytes=settings.work_memory_mib * MIB)
    shapes = output_size, target_shape, head.class_embeddings.shape
    return takes_maps(settings) and nearest_of_maps.applies(*shapes, settings.num_negatives, options)


@dataclass(frozen=True)
class Channels:
    """Say what a head compares.

    Attributes:
        dim: D, of embeddings or features.
        classifier: whether classes have a bias, and are not kept apart.
    """

    dim: int
    classifier: bool

    @classmethod
    def of(cls, segmenter: Segmenter) -> Channels:
        """Return those of a network's head."""
        head = segmenter.head
        return cls(head.class_embeddings.shape[1], isinstance(head, SoftmaxHead))

    def classes(self, count: int) -> Classes:
        """Make so many classes, whose gradients are wanted."""
        bias = torch.zeros(count, requires_grad=True) if self.classifier else None
        return Classes(_unit_vectors(count, self.dim).requires_grad_(), bias)


@functools.cache
def probe_work_memory(
    settings: LossSettings, num_classes: int, channels: Channels, source: PixelSource
) -> WorkMemory:
    """Run the loss on a small real input, and count its work memory.

    Few pixels by all classes show the tables of the classes and full tiles; many pixels by few classes show
    full chunks of pixels, and, by doubling them, what grows with the pixels. Neither takes more than the
    pixels of the step, which may be too few for a full chunk.
    """
    budget = settings.work_memory_mib * MIB
    many_pixels = min(_MANY_PIXELS, source.num_pixels)
    few_pixels = min(many_pixels, max(_FEW_PIXELS, budget // 4 // num_classes))

    def bytes_of(pixels: int, classes: int) -> int:
        if source.maps:
            return _map_bytes(settings, source.factor, pixels, classes, channels)
        return _row_bytes(settings, pixels, classes, channels)

    few_classes = min(_FEW_CLASSES, num_classes)
    once, twice = (bytes_of(pixels, few_classes) for pixels in (_MANY_PIXELS, 2 * _MANY_PIXELS))
    per_pixel = max(0.0, (twice - once) / _MANY_PIXELS)
    sizes = (many_pixels, few_classes), (few_pixels, num_classes)
    fixed = max(bytes_of(pixels, classes) - per_pixel * pixels for pixels, classes in sizes)
    separation = 0
    if settings.separation_weight > 0 and num_classes > 1 and not channels.classifier:
        classes = _unit_vectors(num_classes, channels.dim)[: max(_FEW_PIXELS, budget // 4 // num_classes)]
        separation = _extra_bytes(lambda: separation_loss(classes, work_bytes=budget), classes)
    return WorkMemory(max(0, math.ceil(fixed)), per_pixel, separation)


@functools.cache
def _row_bytes(settings: LossSettings, num_pixels: int, num_classes: int, channels: Channels) -> int:
    """Measure `row_cross_entropy`, without the gradient of its rows."""
    rows, classes = _unit_vectors(num_pixels, channels.dim).requires_grad_(), channels.classes(num_classes)
    target = torch.arange(num_pixels) % num_classes
    extra = _extra_bytes(
        lambda: row_cross_entropy(rows, classes, target, settings, None), rows, classes.embeddings, target
    )
    return extra - rows.nbytes


@functools.cache
def _map_bytes(
    settings: LossSettings, upsampling: int | None, num_pixels: int, num_classes: int, channels: Channels
) -> int:
    """Measure `map_cross_entropy`, without the gradient of the maps."""
    factor, beyond = (upsampling, 0) if upsampling else (4, 1)
    height = max(1, math.isqrt(num_pixels) // factor)
    width = max(1, num_pixels // (height * factor**2))
    rows, classes = _unit_vectors(height * width, channels.dim), channels.classes(num_classes)
    maps = rows.T.reshape(1, channels.dim, height, width).requires_grad_()
    size = 1, height * factor - beyond, width * factor - beyond
    target = (torch.arange(math.prod(size)) % num_classes).view(size)
    of_all = settings.model_copy(update={"pixel_budget": None})
    extra = _extra_bytes(
        lambda: map_cross_entropy(maps, classes, target, of_all, None), maps, classes.embeddings, target
    )
    return extra - maps.nbytes


def _unit_vectors(rows: int, dim: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return F.normalize(torch.randn(rows, dim, generator=generator), dim=1)


def _extra_bytes(call: Callable[[], object], *inputs: Tensor) -> int:
    """Measure a loss on the CPU: the one that trains there, or on a GPU the plain one, which holds more."""
    with forced("tiled") if torch.cuda.is_available() else contextlib.nullcontext():
        return _tracked_bytes(call, *inputs)


def _tracked_bytes(call: Callable[[], object], *inputs: Tensor) -> int:
    tracker = PeakTracker()
    tracker.track(*inputs)
    before = tracker.current
    with tracker:
        call()
    return tracker.peak - before


def losses_without_values(
    segmenter: Segmenter, output: Tensor, target: Tensor, settings: LossSettings, work: WorkMemory | None
) -> Losses:
    """Allocate what `segmentation_losses` does, for fake tensors with all pixels labeled; compute nothing.

    Args:
        segmenter: its parameters are fake.
        output: (N, D, h, w), fake.
        target: (N, H, W) int64, fake.
        settings: which loss.
        work: from `probe_work_memory`; unused for the loss `dense`, which needs no values.
    """
    head, size = segmenter.head, target.shape[-2:]
    source = PixelSource.of(segmenter, output.shape[2:], target.shape, settings)
    targets = target.flatten()
    if settings.name == "dense":
        output = dense_logits(head, output)
    if source.maps:
        compared = output
    elif settings.pixel_budget is None:
        compared = full_resolution_rows(output, size)
    else:
        pixels = torch.arange(source.num_pixels)
        compared, targets = rows_of_pixels(output, size, pixels), targets.index_select(0, pixels)
    if settings.name == "dense":
        return dense_losses(compared, targets)
    assert work is not None
    class_embeddings = head.class_embeddings
    work_bytes = work.of_cross_entropy(source.num_pixels)
    total = _Allocate.apply(compared, class_embeddings, head.bias, work_bytes)
    separation = torch.zeros_like(total)
    if needs_separation(head, settings):
        _bytes(compared, work.separation)
        too_close = torch.arange(
            0
        )  # hardly any pair is; with few dimensions many are, but then tables are small
        separation = class_embeddings[too_close].sum()
        total = total + settings.separation_weight * separation
    return Losses(total, total.detach(), separation.detach())


class _Allocate(torch.autograd.Function):
    """Return a scalar of two or three inputs, with a gradient kept for each and work memory in between."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, classes: Tensor, bias: Tensor | None, work_bytes: int) -> Tensor:
        row_gradient = torch.zeros_like(rows)
        work = _bytes(rows, work_bytes)
        del work
        of_bias = None if bias is None else torch.zeros_like(bias)
        ctx.save_for_backward(row_gradient, torch.zeros_like(classes), of_bias)
        return rows.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return *scaled_gradients(ctx, gradients[0]), None


def _bytes(like: Tensor, count: int) -> Tensor:
    return like.new_empty(count, dtype=torch.uint8)
