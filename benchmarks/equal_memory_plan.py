"""Decide what each variant trains with in a budget of memory: crop, batch, learning rate and steps.

The recipe (the settings) says what is wanted; a budget takes away from it. The crop is kept as large as two
images of it fit (batch norm needs two), then the batch, both by the prediction of `pipeline memory`. Weights,
gradients and the optimizer's state count, as they do on a GPU.
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

FEWEST_IMAGES = 2
_UNDIVIDED: dict[str, object] = {"accumulation_steps": 1, "effective_batch_size": None}


@dataclass(frozen=True)
class Plan:
    """Hold the largest step of a variant that fits a budget.

    Attributes:
        batch_size: images of a step.
        crop_size: side of their squares in pixels.
        predicted_bytes: of the step.
    """

    batch_size: int
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
    """Find the largest crop of which `FEWEST_IMAGES` fit, then the most images up to the recipe's.

    Args:
        settings: one variant's; `train.batch_size` and `train.crop_size` are the most that is wanted.
        predicted: of its steps; grows with the images.
        budget_bytes: of a step.

    Returns:
        None where the smallest crop does not fit either.
    """
    wanted = settings.train.images_per_step
    for crop in crop_sizes(settings.train.crop_size, settings.model.output_stride):
        if predicted(FEWEST_IMAGES, crop) > budget_bytes:
            continue
        enough = range(FEWEST_IMAGES, max(wanted, FEWEST_IMAGES) + 1)
        too_many = bisect_right(enough, budget_bytes, key=lambda images: predicted(images, crop))
        images = enough[too_many - 1]
        return Plan(images, crop, predicted(images, crop))
    return None


def planned_settings(
    settings: Settings, plan: Plan, *, images: int | None = None, steps: int = 1
) -> Settings:
    """Return the settings of a training with a plan.

    A smaller batch has a smaller learning rate: in proportion for SGD, by the root of it for AdamW.

    Args:
        settings: the recipe of one variant.
        plan: what fits.
        images: seen in all; the steps follow from it. None for `steps`.
        steps: of the optimizer.
    """
    train = settings.train
    share = plan.batch_size / train.images_per_step
    steps = steps if images is None else max(1, round(images / plan.batch_size))
    rate = train.learning_rate * (math.sqrt(share) if train.optimizer == "adamw" else share)
    changes: dict[str, object] = {
        **_UNDIVIDED,
        "batch_size": plan.batch_size,
        "crop_size": plan.crop_size,
        "learning_rate": rate,
        "steps": steps,
        "validate_every": steps,
    }
    return with_overrides(settings, {f"train.{key}": value for key, value in changes.items()}).model_copy(
        update={"project": settings.project}
    )
