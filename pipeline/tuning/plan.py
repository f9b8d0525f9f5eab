"""Plan a sweep from the settings and check everything before anything starts.

Only files are read here; a user error leaves nothing behind. `pipeline.tuning.runner` runs the plan.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from pipeline.config.paths import bootstrapped_folder, label_space_file
from pipeline.config.schema import Settings
from pipeline.runtime.device import GIB
from pipeline.runtime.errors import DataError, MemoryLimitError, UsageError
from pipeline.tuning.portable import at_project
from pipeline.tuning.space import Space, read_space
from pipeline.tuning.sweep import Sweep, SweepPlan, name_in_use, trial_settings


def new_plan(
    settings: Settings, *, name: str | None = None, trials: int | None = None
) -> tuple[SweepPlan, Space]:
    """Make the plan of a new sweep.

    Args:
        settings: of the variant to sweep, with the tune section.
        name: of the sweep; by default the date and time.
        trials: instead of tune.trials.

    Raises:
        UsageError: the space is empty or wrong, or the name is in use or no valid folder name.
        DataError: no bootstrapped data.
        MemoryLimitError: no point of the space fits the memory budget.
    """
    from pipeline.config.load import with_overrides

    tune = settings.tune
    settings = with_overrides(settings, tune.fixed, where=f"{settings.file}: tune.fixed")
    space = read_space(tune.space, settings)
    double = sorted(set(tune.fixed) & set(space.keys))
    if double:
        raise UsageError(
            "a setting is both fixed and swept", where=f"{settings.file}: tune", found=", ".join(double)
        )
    name = name or time.strftime("sweep-%Y%m%d-%H%M%S")
    if not name.replace("-", "").replace("_", "").replace(".", "").isalnum() or name.startswith("."):
        raise UsageError("not a name", where="--name", found=name, allowed="letters, digits, - _ .")
    if (tune.folder / name).exists():
        raise name_in_use(tune.folder / name)
    if not (bootstrapped_folder(settings) / "manifest.json").is_file():
        raise DataError(
            "no bootstrapped data", where=bootstrapped_folder(settings), hint="make it: dvc repro bootstrap"
        )
    on_gpu = _uses_gpu(settings)
    plan = SweepPlan(
        name=name,
        settings=settings.model_dump(mode="json"),
        space={key: dict(values) for key, values in tune.space.items()},
        objectives=list(tune.objectives),
        trials=int(min(trials or tune.trials, space.size)),
        seed=tune.seed,
        memory_kind="cuda_allocator" if on_gpu else "predicted",
        pruning=tune.pruning,
        reduction_factor=tune.reduction_factor,
        memory_budget_gib=tune.memory_budget_gib or (_gpu_gib() if on_gpu else None),
    )
    _check_memory(plan, space)
    return plan, space


def _uses_gpu(settings: Settings) -> bool:
    wanted = settings.tune.gpus_per_trial
    if settings.runtime.device == "cpu" or wanted == 0:
        return False
    if wanted != "auto" or settings.runtime.device.startswith("cuda"):
        return True
    import torch

    return torch.cuda.is_available()


def _gpu_gib() -> float | None:
    import torch

    if not torch.cuda.is_available():
        return None  # the GPUs are in the cluster
    return torch.cuda.get_device_properties(0).total_memory / GIB


def _check_memory(plan: SweepPlan, space: Space) -> None:
    """Check by prediction that a corner of the space fits the memory budget, if there is one."""
    if plan.memory_budget_gib is None or plan.base().train.batch_size == "auto":
        return  # auto: each trial divides its batch on the device it gets
    from pipeline.data.labels.label_space import LabelSpace
    from pipeline.memory.predict import predict_bytes

    num_classes = LabelSpace.load(label_space_file(plan.base())).num_classes
    lowest, point = float("inf"), {}
    for corner in space.corners():
        needed = predict_bytes(trial_settings(plan, corner), num_classes) / GIB
        if needed < lowest:
            lowest, point = needed, corner
        if needed <= plan.memory_budget_gib:
            return
    raise MemoryLimitError(
        "no point of the space fits the memory budget",
        where=", ".join(f"{key}={value}" for key, value in point.items()),
        found=f"{lowest:.2f} GiB predicted for one training step, the least of the space's corners",
        allowed=f"{plan.memory_budget_gib:.2f} GiB (tune.memory_budget_gib, or the GPU's)",
        hint="lower train.batch_size or train.crop_size, or sweep smaller values",
    )


def continue_plan(sweep: Sweep, project: Path, *, extend: int = 0) -> tuple[SweepPlan, Space]:
    """Return the plan of an existing sweep with `extend` more trials. Its settings stay those of its start.

    Args:
        sweep: to go on with.
        project: the folder of the project that goes on with it. Where the sweep's own is gone, as a moved one
            is whose sweeps lie outside, this one takes its place.
        extend: trials to add.

    Raises:
        UsageError: trials were to be added, but the space has no point left; the sweep is another project's.
    """
    plan = sweep.plan
    own = plan.base().file
    if own.parent != project and own.is_file() and not (project.exists() and own.parent.samefile(project)):
        raise UsageError(
            "the sweep belongs to another project",
            where=sweep.folder,
            found=own.parent,
            hint="go on with it there, or start one under another --name here",
        )
    if own.parent != project:
        plan = replace(plan, settings=at_project(plan.settings, project))
    space = read_space(plan.space, plan.base())
    if extend and plan.trials >= space.size:
        raise UsageError(
            "nothing left to try",
            where=sweep.folder,
            found=f"{plan.trials} trials for the {space.size:g} points of the space",
            hint="start a sweep of a larger space",
        )
    return replace(plan, trials=int(min(plan.trials + extend, space.size))), space
