"""The benchmark at equal memory: what fits a budget, how long it is trained, and what the table says."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from benchmarks import equal_memory, equal_memory_plan
from benchmarks.equal_memory import Bench, all_runs, same_time_steps
from benchmarks.equal_memory_page import Run, draw, tables
from benchmarks.equal_memory_plan import Plan, crop_sizes, largest_plan, planned_settings, prediction
from pipeline.config.load import load_settings
from pipeline.config.schema import Settings
from pipeline.runtime.device import MIB
from tests.paths import ROOT


def _settings(variant: str = "dense", **overrides: object) -> Settings:
    changes = {f"train.{key}": value for key, value in overrides.items()}
    return load_settings(ROOT / "params.yaml", variant=variant, overrides=changes)


@pytest.mark.parametrize("budget", [0, 511, 512, 3_000, 4_608, 6_000, 9_216, 13_823, 13_824, 10**6])
def test_the_plan_has_the_largest_crop_and_then_the_largest_batch(budget: int) -> None:
    def pixels(images: int, crop: int) -> int:
        return images * crop**2

    plan = largest_plan(_settings(batch_size=6, crop_size=48), pixels, budget)
    fitting = [
        (crop, images) for crop in (16, 32, 48) for images in range(2, 7) if images * crop**2 <= budget
    ]
    best = max(fitting, default=None)  # brute force
    assert (plan and (plan.crop_size, plan.batch_size)) == best
    assert plan is None or plan.predicted_bytes == plan.batch_size * plan.crop_size**2


def test_a_prediction_is_that_of_the_step_and_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []

    def predict(settings: Settings, num_classes: int) -> int:
        train = settings.train
        asked.append((train.images_per_step, train.micro_batch_size, train.crop_size, num_classes))
        return 5

    monkeypatch.setattr(equal_memory_plan, "predict_bytes", predict)
    predicted = prediction(_settings(batch_size=6, accumulation_steps=3), 7)
    assert [predicted(4, 32), predicted(4, 32)] == [5, 5]
    assert asked == [(4, 4, 32, 7)]


def test_crops_are_tried_from_the_wanted_one_down() -> None:
    assert crop_sizes(48, 16) == [48, 32, 16]
    assert crop_sizes(512, 16) == [512, 448, 384, 320, 256, 192, 128, 64]
    assert crop_sizes(40, 16) == [40, 32, 16]


def test_a_smaller_batch_takes_more_and_smaller_steps() -> None:
    recipe = _settings(batch_size=6, crop_size=48, learning_rate=0.3, optimizer="sgd")
    planned = planned_settings(recipe, Plan(2, 32, 1), images=600)
    train = planned.train
    assert (train.steps, train.batch_size, train.crop_size, train.validate_every) == (300, 2, 32, 300)
    assert train.learning_rate == pytest.approx(0.1)
    adamw = planned_settings(
        _settings(batch_size=8, learning_rate=0.3, optimizer="adamw"), Plan(2, 32, 1), steps=9
    )
    assert (adamw.train.steps, adamw.train.learning_rate) == (9, pytest.approx(0.15))


RUN = Run(
    key="",
    protocol="images",
    variant="dense",
    budget_bytes=12 * MIB,
    seed=0,
    batch_size=2,
    crop_size=16,
    steps=100,
    predicted_bytes=11 * MIB,
    seconds_per_step=0.1,
    miou=0.01,
    pixel_accuracy=0.1,
)


def test_equal_time_is_that_of_the_reference() -> None:
    reference = dataclasses.replace(RUN, steps=50, seconds_per_step=0.4)  # 20 s
    assert same_time_steps(RUN, reference) == 200
    assert same_time_steps(dataclasses.replace(RUN, seconds_per_step=0.196), reference) == 100  # 19.6 s


def test_all_seeds_on_equal_images_come_first_and_finished_runs_are_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []

    def pretend(
        self: Bench, key: str, protocol: str, budget: int, plan: Plan, settings: Settings
    ) -> dict[str, object]:
        trained.append(key)
        slow = 0.2 if settings.variant == "dense" else 0.1
        values = dataclasses.asdict(plan) | {"steps": settings.train.steps, "seconds_per_step": slow}
        names = {"key": key, "protocol": protocol, "variant": settings.variant, "budget_bytes": budget}
        return dataclasses.asdict(RUN) | values | names | {"seed": settings.train.seed}

    monkeypatch.setattr(Bench, "_trained", pretend)
    bench = Bench(ROOT / "params.yaml", dict(equal_memory.RECIPE), tmp_path, embedded=True)
    plans = {
        ("dense", MIB): Plan(2, 16, 1),
        ("softmax", MIB): Plan(2, 32, 1),
        ("softmax", 2 * MIB): Plan(2, 32, 1),
    }

    def told() -> list[tuple[str, int, str, int]]:
        found = all_runs(bench, plans, 40, 2, equal_time=True)
        return [(run.protocol, run.seed, run.variant, run.steps) for run in found]

    first = told()
    three = [("dense", 20), ("softmax", 20), ("softmax", 20)]
    assert first[:6] == [("images", seed, name, steps) for seed in (0, 1) for name, steps in three]
    three = [("dense", 10), ("softmax", 20), ("softmax", 20)]
    assert first[6:] == [("time", seed, name, steps) for seed in (0, 1) for name, steps in three]
    assert len(trained) == 6  # softmax in both budgets and protocols is one training a seed
    assert told() == first
    assert len(trained) == 6


def test_the_table_has_mean_spread_and_the_factor_over_dense() -> None:
    runs = [RUN, dataclasses.replace(RUN, seed=1, miou=0.03)]
    runs += [dataclasses.replace(run, variant="softmax", miou=3 * run.miou) for run in runs]
    (table,) = tables(runs)
    dense, softmax = table.splitlines()[2:]
    assert dense.split() == [
        *("12", "dense", "2", "x", "16", "100", "11.0", "10", "2"),
        *("2.00", "±", "1.41", "10.00", "±", "0.00", "1.00"),
    ]
    assert softmax.split()[-1] == "3.00"
    assert "6.00 ± 4.24" in softmax


def test_the_picture_has_the_same_bytes_for_the_same_runs(tmp_path: Path) -> None:
    runs = [RUN, dataclasses.replace(RUN, protocol="time"), dataclasses.replace(RUN, variant="essnet")]
    for name in ("one.svg", "two.svg"):
        draw(runs, tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert (tmp_path / "one.svg").read_text().count('<g id="axes_') == 2
