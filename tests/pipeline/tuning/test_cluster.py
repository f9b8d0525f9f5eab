"""A trial's share of the machines: never more than one of them has, however many there are."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.load import load_settings
from pipeline.runtime.errors import KilosegError, UsageError
from pipeline.tuning.cluster import Machine, Resources, allocate
from pipeline.tuning.sweep import SweepPlan

HEAD = Machine(cpus=16)  # a head with processors of its own and no GPU


def make_plan(*, on_gpu: bool, trials: int = 8) -> SweepPlan:
    settings = load_settings(variant="essnet").model_dump(mode="json")
    kind = "cuda_allocator" if on_gpu else "predicted"
    return SweepPlan("named", settings, {}, ["val/miou"], trials, 0, kind, True, 3)


@pytest.mark.parametrize(
    ("machines", "concurrent", "expected"),
    [
        ([Machine(2)], None, Resources(1, 0.0, 2)),
        ([Machine(2)], 1, Resources(2, 0.0, 1)),
        ([Machine(64)], None, Resources(8, 0.0, 8)),  # no more at once than trials
        ([Machine(2), Machine(2)], 1, Resources(2, 0.0, 1)),  # not four of two machines
        ([Machine(0), Machine(3), Machine(3)], 4, Resources(1, 0.0, 4)),
        ([Machine(0)], None, Resources(1, 0.0, 1)),  # a cluster that will grow
    ],
)
def test_on_processors(
    project: Path, machines: list[Machine], concurrent: int | None, expected: Resources
) -> None:
    assert allocate(make_plan(on_gpu=False), machines, max_concurrent=concurrent) == expected


@pytest.mark.parametrize(
    ("machines", "gpus", "expected"),
    [
        ([Machine(8, 1.0)], None, Resources(8, 1.0, 1)),
        ([Machine(8, 1.0)], 0.5, Resources(4, 0.5, 2)),
        ([HEAD, Machine(8, 1.0), Machine(8, 1.0)], None, Resources(8, 1.0, 2)),
        ([Machine(8, 4.0), Machine(8, 1.0)], None, Resources(2, 1.0, 5)),
        ([Machine(8, 4.0), Machine(8, 1.0)], 2.0, Resources(4, 2.0, 2)),
    ],
)
def test_on_gpus(project: Path, machines: list[Machine], gpus: float | None, expected: Resources) -> None:
    assert allocate(make_plan(on_gpu=True), machines, gpus_per_trial=gpus) == expected


def test_no_machine_has_a_trials_gpus(project: Path) -> None:
    """Four GPUs in two machines are not three for one trial."""
    with pytest.raises(KilosegError, match="too few GPUs"):
        allocate(make_plan(on_gpu=True), [Machine(8, 2.0), Machine(8, 2.0)], gpus_per_trial=3)


def test_gpus_for_a_sweep_without_any_are_refused(project: Path) -> None:
    with pytest.raises(UsageError, match="uses none"):
        allocate(make_plan(on_gpu=False), [Machine(8, 2.0)], gpus_per_trial=1)
    assert allocate(make_plan(on_gpu=False), [Machine(8, 2.0)], gpus_per_trial=0).gpus == 0


def test_a_trial_keeps_to_its_share_unless_the_settings_say_otherwise(project: Path) -> None:
    settings = load_settings()
    auto = settings.model_copy(
        update={"runtime": settings.runtime.model_copy(update={"threads": "auto", "num_workers": "auto"})}
    )
    assert Resources(4, 0.0, 2).runtime(auto) == {
        "runtime.threads": 4,
        "runtime.num_workers": 3,
        "runtime.device": "cpu",
    }
    assert Resources(4, 0.0, 2).runtime(settings)["runtime.threads"] == 1
    assert Resources(4, 0.0, 2).runtime(auto, 3)["runtime.threads"] == 3  # as the sweep's first trials had
