"""Decide what each variant trains with in a budget of memory: crop, batch, learning rate and steps.

The recipe (the settings) says what is wanted; a budget takes away from it. The crop is kept as large as one
image of it fits, by the prediction of `pipeline memory`. A step has the recipe's images everywhere: as many
at a time as fit, their gradients accumulated, which costs time and no memory. Only batch norm knows the
difference. Weights, gradients and the optimizer's state count, as they do on a GPU.
"""

from __future__ import annotations

import functools
import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.config.load import with_overrides
from pipeline.config.schema import Settings
from pipeline.memory.predict import predict_bytes, with_changes

_UNDIVIDED: dict[str, object] = {"accumulation_steps": 1, "effective_batch_size": None}


@dataclass(frozen=True)
class Plan:
    """Hold the largest step of a variant that fits a budget.

    Attributes:
        batch_size: images of a step.
        accumulation_steps: parts into which they are divided.
        crop_size: side of their squares in pixels.
        predicted_bytes: of the step.
    """

    batch_size: int
    accumulation_steps: int
    crop_size: int
    predicted_bytes: int


def crop_sizes(wanted: int, output_stride: int) -> list[int]:
    """Return the sides that are tried, the largest first: eight or fewer, multiples of the output stride."""
    unit = output_stride * max(1, round(wanted / 8 / output_stride))
    return [wanted, *(side for side in range(wanted // unit * unit, 15, -unit) if side < wanted)]


Prediction = Callable[[int, int], int]
"""Of the bytes of a step, from its images and their crop."""


def prediction(settings: Settings, num_classes: int) -> Prediction:
    """Return the prediction of a variant's steps; each is made once."""

    @functools.cache
    def predicted(images: int, crop: int) -> int:
        changed = with_changes(settings, train=_UNDIVIDED | {"batch_size": images, "crop_size": crop})
        return predict_bytes(changed, num_classes)

    return predicted


def largest_plan(settings: Settings, predicted: Prediction, budget_bytes: int) -> Plan | None:
    """Find the largest crop of which one image fits, and divide the recipe's images as seldom as fits.

    Two images must fit where the backbone's last map has a single cell: batch norm needs two values.

    Args:
        settings: one variant's; `train.batch_size` and `train.crop_size` are what is wanted.
        predicted: of its steps; grows with the images.
        budget_bytes: of a step.

    Returns:
        None where the smallest crop does not fit either.
    """
    for crop in crop_sizes(settings.train.crop_size, settings.model.output_stride):
        fewest = 1 if crop > settings.model.output_stride else 2
        if predicted(fewest, crop) > budget_bytes:
            continue
        wanted = max(fewest, settings.train.images_per_step)
        enough = range(fewest, wanted + 1)
        too_many = bisect_right(enough, budget_bytes, key=lambda images: predicted(images, crop))
        parts = math.ceil(wanted / enough[too_many - 1])
        if wanted // parts < fewest:  # an odd number by twos: the last one would be alone
            parts, wanted = parts - 1, wanted - 1
        return Plan(wanted, parts, crop, predicted(math.ceil(wanted / parts), crop))
    return None


def planned_settings(
    settings: Settings, plan: Plan, *, rate_factor: float = 1.0, images: int | None = None, steps: int = 1
) -> Settings:
    """Return the settings of a training with a plan.

    Args:
        settings: the recipe of one variant.
        plan: what fits.
        rate_factor: times the recipe's learning rate.
        images: seen in all; the steps follow from it. None for `steps`.
        steps: of the optimizer.
    """
    steps = steps if images is None else max(1, round(images / plan.batch_size))
    changes: dict[str, object] = {
        "batch_size": plan.batch_size,
        "accumulation_steps": plan.accumulation_steps,
        "effective_batch_size": None,
        "crop_size": plan.crop_size,
        "learning_rate": settings.train.learning_rate * rate_factor,
        "steps": steps,
        "validate_every": steps,
    }
    return with_overrides(settings, {f"train.{key}": value for key, value in changes.items()}).model_copy(
        update={"project": settings.project}
    )
