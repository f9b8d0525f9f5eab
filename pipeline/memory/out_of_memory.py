"""Explain a training step that ran out of memory: what was tried, its predicted need, what would fit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from pipeline.config.paths import label_space_file
from pipeline.config.schema import Settings
from pipeline.data.labels.label_space import LabelSpace
from pipeline.memory.batch_size import USABLE, capacity_bytes, largest_batch, min_accumulation
from pipeline.memory.predict import predict_bytes
from pipeline.runtime.device import GIB, choose_device, is_out_of_memory
from pipeline.runtime.errors import KilosegError, MemoryLimitError


@contextlib.contextmanager
def explained_memory(settings: Settings) -> Iterator[None]:
    """Turn an allocation that failed in the block into a `MemoryLimitError` with the fix.

    Args:
        settings: of the training in the block.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        found = str(error).partition("\n")[0] or "no word from Python"
    else:
        return
    raise explanation(settings, found)  # outside, so that the failed step's tensors are free again


def explanation(settings: Settings, found: str) -> MemoryLimitError:
    """Return the error of a training under `settings` that ended with torch's message `found`."""
    train, device = settings.train, choose_device(settings.runtime.device)
    num_classes = LabelSpace.load(label_space_file(settings)).num_classes
    capacity = capacity_bytes(device)
    where = (
        f"a step of batch_size {train.batch_size}, accumulation_steps {train.accumulation_steps}, "
        f"crop_size {train.crop_size}, {num_classes} classes, head {settings.model.head}, on {device}"
    )
    try:
        need = f"; predicted need {predict_bytes(settings, num_classes) / GIB:.2f} GiB"
        hint = _fix(settings, num_classes, int(capacity * USABLE))
    except KilosegError as problem:
        need, hint = "", f"{problem.what}; {problem.hint}"
    allowed = f"{capacity / GIB:.2f} GiB, of which {USABLE:.0%} are counted on"
    return MemoryLimitError("out of memory", where=where, found=found + need, allowed=allowed, hint=hint)


def _fix(settings: Settings, num_classes: int, budget_bytes: int) -> str:
    """Name what fits: the same images a step in more micro-batches, or fewer images."""
    train = settings.train
    fit = min_accumulation(settings, num_classes, budget_bytes)
    if train.batch_size == "auto":
        return "set train.memory_budget_gib lower, and free the memory that others use"
    if fit.accumulation_steps <= train.accumulation_steps:
        return "free the memory that others use: the step alone is predicted to fit"
    whole = largest_batch(settings, num_classes, budget_bytes)
    return (
        f"set train.accumulation_steps to {fit.accumulation_steps}: still {train.batch_size} images a step, "
        f"{fit.micro_batch_size} at a time (predicted {fit.predicted_bytes / GIB:.2f} GiB); or "
        f"set train.batch_size to {whole.batch_size} (predicted {whole.predicted_bytes / GIB:.2f} GiB)"
    )
