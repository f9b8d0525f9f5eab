"""A training step that did not fit: what was tried, what it is predicted to need, and what would fit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from pipeline.config.schema import Settings
from pipeline.data.labels.label_space import LabelSpace
from pipeline.memory.batch_size import USABLE, capacity_bytes, fewest_parts, largest_batch
from pipeline.memory.predict import predict_bytes
from pipeline.runtime.device import GIB, choose_device, is_out_of_memory
from pipeline.runtime.errors import MemoryProblem, Problem


@contextlib.contextmanager
def explained_memory(settings: Settings) -> Iterator[None]:
    """Turns an allocation that failed in the block into a `MemoryProblem` with the way out.

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


def explanation(settings: Settings, found: str) -> MemoryProblem:
    """The problem of a training under `settings` that ended with torch's message `found`."""
    options, device = settings.train, choose_device(settings.runtime.device)
    num_classes = LabelSpace.load(settings.bootstrapped / "label_space.json").num_classes
    capacity = capacity_bytes(device)
    where = (
        f"a step of batch_size {options.batch_size}, accumulate {options.accumulate}, crop_size "
        f"{options.crop_size}, {num_classes} classes, head {settings.model.head}, on {device}"
    )
    try:
        need = f"; predicted need {predict_bytes(settings, num_classes) / GIB:.2f} GiB"
        mend = _way_out(settings, num_classes, int(capacity * USABLE))
    except Problem as problem:
        need, mend = "", f"{problem.what}; {problem.mend}"
    allowed = f"{capacity / GIB:.2f} GiB, of which {USABLE:.0%} are counted on"
    return MemoryProblem("out of memory", where=where, found=found + need, allowed=allowed, mend=mend)


def _way_out(settings: Settings, num_classes: int, budget_bytes: int) -> str:
    """What fits: the same images a step in more parts, or fewer images."""
    options = settings.train
    fit = fewest_parts(settings, num_classes, budget_bytes)
    if options.batch_size == "auto":
        return "set train.memory_budget_gib lower, and free the memory that others use"
    if fit.parts <= options.accumulate:
        return "free the memory that others use: the step alone is predicted to fit"
    whole = largest_batch(settings, num_classes, budget_bytes)
    return (
        f"set train.accumulate to {fit.parts}: still {options.batch_size} images a step, {fit.batch_size} at "
        f"a time (predicted {fit.predicted_bytes / GIB:.2f} GiB); or "
        f"set train.batch_size to {whole.batch_size} (predicted {whole.predicted_bytes / GIB:.2f} GiB)"
    )
