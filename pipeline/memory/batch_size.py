"""Find the batch size that fits: the largest for a memory budget, or the fewest accumulation steps.

Both are found by prediction (`pipeline.memory.predict`), so nothing need run out of memory first. With
`train.batch_size: auto` a step keeps its `effective_batch_size` images; only batch norm sees micro-batches.
"""

from __future__ import annotations

import functools
import math
import os
import resource
import sys
from dataclasses import dataclass

import torch

from pipeline.config.schema import Settings
from pipeline.memory.predict import predict_bytes, with_changes
from pipeline.runtime.device import GIB
from pipeline.runtime.errors import MemoryLimitError

SMALLEST_CROP = 48
USABLE = 0.9
"""Share of a device's memory to plan with; the rest is for the context, workspaces and fragmentation."""


def capacity_bytes(device: torch.device) -> int:
    """Return the bytes of the GPU, or of the machine and the limit that this process was given."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    capacity = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return capacity if limit == resource.RLIM_INFINITY else min(capacity, limit)


def budget_bytes(settings: Settings, device: torch.device) -> int:
    """Return the bytes a step may take: `train.memory_budget_gib`, or most of what the device has free."""
    budget = settings.train.memory_budget_gib
    if budget is not None:
        return int(budget * GIB)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else capacity_bytes(device)
    return int(free * USABLE)


def find_accumulation(settings: Settings, num_classes: int, device: torch.device) -> int:
    """Return the fewest accumulation steps whose predicted peak fits, and print them to stderr.

    Args:
        settings: with `batch_size: auto`.
        num_classes: C.
        device: whose free memory is the budget where none is stated.

    Raises:
        MemoryLimitError: not even one image at a time fits.
    """
    fit = min_accumulation(settings, num_classes, budget_bytes(settings, device))
    images = settings.train.images_per_step
    print(
        f"batch_size auto: {images} images a step, {fit.micro_batch_size} at a time "
        f"(accumulation_steps {fit.accumulation_steps}), "
        f"predicted {fit.predicted_bytes / GIB:.2f} GiB",
        file=sys.stderr,
        flush=True,
    )
    return fit.accumulation_steps


@dataclass(frozen=True)
class Accumulation:
    """Hold the fewest accumulation steps of which each fits, and the peak predicted for them."""

    accumulation_steps: int
    micro_batch_size: int
    predicted_bytes: int


def min_accumulation(settings: Settings, num_classes: int, budget_bytes: int) -> Accumulation:
    """Find the fewest accumulation steps that fit: interpolate until two predictions enclose the budget.

    Raises:
        MemoryLimitError: not even one image at a time fits; says which crop would.
    """
    images = settings.train.images_per_step

    @functools.cache
    def predicted(micro_batch_size: int) -> int:
        accumulation_steps = -(-images // micro_batch_size)
        divided = with_changes(settings, train=_batch(images, accumulation_steps))
        return _told(micro_batch_size, predict_bytes(divided, num_classes))

    if predicted(1) > budget_bytes:
        raise _nothing_fits(settings, num_classes, budget_bytes, predicted(1))
    fits, too_few, guess = images, 0, 1
    while fits - too_few > 1:
        micro_batch_size = -(-images // guess)
        if predicted(micro_batch_size) <= budget_bytes:
            fits = guess
        else:
            too_few = guess
        slope = (predicted(micro_batch_size) - predicted(1)) / (micro_batch_size - 1)  # more than one image
        expected = 1 + math.floor((budget_bytes - predicted(1)) / max(1.0, slope))
        guess = min(max(-(-images // expected), too_few + 1), fits - 1)
    micro_batch_size = -(-images // fits)
    return Accumulation(fits, micro_batch_size, predicted(micro_batch_size))


@dataclass(frozen=True)
class Fit:
    """Hold the largest batch whose predicted peak stays within a budget."""

    batch_size: int
    predicted_bytes: int
    next_predicted_bytes: int
    """of a batch with one image more"""


def largest_batch(settings: Settings, num_classes: int, budget_bytes: int) -> Fit:
    """Find the largest `train.batch_size` that fits: extrapolate until two predictions enclose the budget.

    Raises:
        MemoryLimitError: not even one image fits; says which crop would.
    """

    @functools.cache
    def predicted(batch_size: int) -> int:
        changed = with_changes(settings, train=_batch(batch_size))
        return _told(batch_size, predict_bytes(changed, num_classes))

    if predicted(1) > budget_bytes:
        raise _nothing_fits(settings, num_classes, budget_bytes, predicted(1))
    fits, too_large, guess = 1, math.inf, 2
    while too_large - fits > 1:
        if predicted(guess) <= budget_bytes:
            fits = guess
        else:
            too_large = guess
        slope = max(1.0, (predicted(guess) - predicted(1)) / (guess - 1))
        guess = fits + max(1, math.floor((budget_bytes - predicted(fits)) / slope))
        guess = int(min(guess, too_large - 1))
    return Fit(fits, predicted(fits), predicted(fits + 1))


def _told(images: int, predicted: int) -> int:
    """Print a prediction to stderr, as the search for the one that fits takes seconds."""
    plural = "" if images == 1 else "s"
    print(
        f"{images} image{plural} at a time: {predicted / GIB:.2f} GiB predicted", file=sys.stderr, flush=True
    )
    return predicted


def _batch(images: int, accumulation_steps: int = 1) -> dict[str, object]:
    return {
        "batch_size": images,
        "effective_batch_size": None,
        "accumulation_steps": accumulation_steps,
    }


def _nothing_fits(settings: Settings, num_classes: int, budget: int, needed: int) -> MemoryLimitError:
    crop, hint = settings.train.crop_size // 2, "take a smaller backbone or fewer decoder_channels"
    while crop >= SMALLEST_CROP:
        if _one_image(settings, crop, num_classes) <= budget:
            hint = f"one image fits with train.crop_size {crop}"
            break
        crop //= 2
    return MemoryLimitError(
        "not even a batch of one image fits",
        where=f"{num_classes} classes, head {settings.model.head}, crop_size {settings.train.crop_size}",
        found=f"{needed / GIB:.2f} GiB predicted",
        allowed=f"{budget / GIB:.2f} GiB",
        hint=hint,
    )


def _one_image(settings: Settings, crop: int, num_classes: int) -> int:
    changed = with_changes(settings, train=_batch(1) | {"crop_size": crop})
    return predict_bytes(changed, num_classes)
