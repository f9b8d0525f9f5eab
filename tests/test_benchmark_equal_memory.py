"""The benchmark at equal memory: what fits a budget, how long it is trained, and what the table says."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from benchmarks import equal_memory, equal_memory_plan
from benchmarks.equal_memory import Bench, all_runs, best_factor, next_factor, same_time_steps
from benchmarks.equal_memory_page import Run, draw, tables
from benchmarks.equal_memory_plan import Plan, crop_sizes, largest_plan, planned_settings, prediction
from benchmarks.runs import code_digest
from pipeline.config.load import load_settings
from pipeline.config.schema import Settings
from pipeline.runtime.device import MIB
from tests.paths import ROOT


def _settings(variant: str = "dense", **overrides: object) -> Settings:
    changes = {f"train.{key}": value for key, value in overrides.items()}
    return load_settings(ROOT / "params.yaml", variant=variant, overrides=changes)


@pytest.mark.parametrize("budget", [0, 511, 512, 1_023, 1_024, 2_304, 4_608, 6_000, 9_216, 13_823, 13_824])
def test_the_plan_has_the_largest_crop_and_then_the_fewest_parts(budget: int) -> None:
    def pixels(images: int, crop: int) -> int:
        return images * crop**2

    plan = largest_plan(_settings(batch_size=6, crop_size=48), pixels, budget)
    divisions = [(1, 6), (2, 3), (3, 2), (4, 2), (5, 2), (6, 1)]  # parts, images of the largest part
    fitting = [
        (crop, -parts)
        for crop in (16, 32, 48)
        for parts, largest in divisions
        if largest * crop**2 <= budget and (crop > 16 or parts <= 3)  # one cell: two images in each part
    ]
    best = max(fitting, default=None)  # brute force
    assert (plan and (plan.crop_size, -plan.accumulation_steps)) == best
    if plan is not None:
        assert plan.batch_size == 6
        assert plan.predicted_bytes == dict(divisions)[plan.accumulation_steps] * plan.crop_size**2


def test_an_odd_batch_leaves_no_image_alone_in_a_map_of_one_cell() -> None:
    plan = largest_plan(_settings(batch_size=5, crop_size=16), lambda images, crop: images, 2)
    assert plan == Plan(4, 2, 16, 2)
    larger = largest_plan(_settings(batch_size=5, crop_size=32), lambda images, crop: images, 2)
    assert larger == Plan(5, 3, 32, 2)


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


def test_a_planned_training_has_the_steps_of_its_images_and_a_share_of_the_rate() -> None:
    recipe = _settings(batch_size=6, crop_size=48, learning_rate=0.3)
    train = planned_settings(recipe, Plan(6, 3, 32, 1), rate_factor=0.1, images=600).train
    assert (train.steps, train.validate_every, train.crop_size) == (100, 100, 32)
    assert (train.batch_size, train.accumulation_steps, train.micro_batch_size) == (6, 3, 2)
    assert train.learning_rate == pytest.approx(0.03)
    assert planned_settings(recipe, Plan(6, 1, 48, 1), steps=9).train.steps == 9


RUN = Run(
    key="",
    protocol="images",
    variant="dense",
    budget_bytes=12 * MIB,
    seed=0,
    batch_size=6,
    accumulation_steps=4,
    crop_size=16,
    predicted_bytes=11 * MIB,
    learning_rate=0.02,
    steps=100,
    seconds_per_step=0.1,
    held_out_miou=0.02,
    miou=0.01,
    pixel_accuracy=0.1,
)


def test_equal_time_is_that_of_the_reference() -> None:
    reference = dataclasses.replace(RUN, steps=50, seconds_per_step=0.4)  # 20 s
    assert same_time_steps(RUN, reference) == 200
    assert same_time_steps(dataclasses.replace(RUN, seconds_per_step=0.196), reference) == 100  # 19.6 s


def test_rates_are_chosen_first_and_finished_runs_are_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []
    best_rates = {"dense": 0.002, "softmax": 0.02}

    def pretend(
        self: Bench, key: str, protocol: str, budget: int, plan: Plan, settings: Settings
    ) -> dict[str, object]:
        trained.append(key)
        variant, rate = str(settings.variant), settings.train.learning_rate
        held_out = 1.0 if rate == pytest.approx(best_rates[variant]) else 0.5
        return dataclasses.asdict(RUN) | {
            **dataclasses.asdict(plan),
            "key": key,
            "protocol": protocol,
            "variant": variant,
            "budget_bytes": budget,
            "seed": settings.train.seed,
            "learning_rate": rate,
            "steps": settings.train.steps,
            "seconds_per_step": 0.2 if variant == "dense" else 0.1,
            "held_out_miou": held_out,
            "miou": 1 - held_out,  # val says otherwise
        }

    monkeypatch.setattr(Bench, "_trained", pretend)
    bench = Bench(ROOT / "params.yaml", dict(equal_memory.RECIPE), tmp_path, embedded=True)
    plans = {
        ("dense", MIB): Plan(6, 3, 16, 1),
        ("softmax", MIB): Plan(6, 1, 32, 1),
        ("softmax", 2 * MIB): Plan(6, 1, 32, 1),
    }

    def told(*, own_rate: bool = True) -> list[tuple[str, int, str, int, float]]:
        found = all_runs(bench, plans, 120, 2, own_rate=own_rate, equal_time=True)
        return [(run.protocol, run.seed, run.variant, run.steps, run.learning_rate) for run in found]

    first = told()
    tries = [("rates", 0, "dense", 20, pytest.approx(0.02 * factor)) for factor in (1.0, 0.3, 0.1)]
    assert first[:3] == tries
    assert first[4] == ("images", 0, "dense", 20, pytest.approx(0.002))  # after 0.03 times the rate
    images = [run[1:] for run in first if run[0] == "images"]
    chosen = [("dense", 20, pytest.approx(0.002)), ("softmax", 20, 0.02), ("softmax", 20, 0.02)]
    assert images == [(seed, *of) for seed in (0, 1) for of in chosen]
    same_time = [("dense", 10, pytest.approx(0.002)), ("softmax", 20, 0.02), ("softmax", 20, 0.02)]
    assert [run[1:] for run in first if run[0] == "time"] == [
        (seed, *of) for seed in (0, 1) for of in same_time
    ]
    assert len(trained) == 12  # a rate that was tried is no training more, and neither is softmax elsewhere
    assert told() == first
    assert len(trained) == 12
    assert {run[-1] for run in told(own_rate=False)} == {0.02}


@pytest.mark.parametrize(
    ("best", "tried"),
    [
        (1.0, [1.0, 0.3, 0.1, 3.0]),
        (0.3, [1.0, 0.3, 0.1]),
        (10.0, [1.0, 0.3, 0.1, 3.0, 10.0]),
        (0.03, [1.0, 0.3, 0.1, 0.03, 0.01]),
    ],
)
def test_rates_are_tried_until_the_best_has_a_worse_one_on_either_side(
    best: float, tried: list[float]
) -> None:
    found: dict[float, Run] = {}
    while (factor := next_factor(found)) is not None:
        found[factor] = dataclasses.replace(RUN, held_out_miou=1 / (1 + abs(math.log(factor / best))))
    assert list(found) == tried
    assert best_factor(found) == best


def test_a_rate_at_which_nothing_is_learned_is_not_raised_for_ever() -> None:
    found: dict[float, Run] = {}
    while (factor := next_factor(found)) is not None:
        found[factor] = dataclasses.replace(RUN, held_out_miou=0.0)
    assert list(found) == [1.0, 0.3, 0.1, 3.0]


def test_a_training_of_an_older_version_or_of_other_code_is_done_again(tmp_path: Path) -> None:
    bench = Bench(ROOT / "params.yaml", {}, tmp_path, embedded=True)
    known = dataclasses.replace(RUN, key=json.dumps({"code": code_digest()}))
    other = dataclasses.replace(RUN, key=json.dumps({"code": "another"}))
    unknown = dataclasses.replace(RUN, key="{}")
    old = dataclasses.asdict(known)
    del old["held_out_miou"]
    lines = [json.dumps(line) for line in (old, *map(dataclasses.asdict, (other, unknown, known)))]
    (tmp_path / "runs.jsonl").write_text("\n".join(lines) + "\n")
    assert bench.runs() == [known]


def test_the_table_has_mean_spread_and_the_factor_over_dense() -> None:
    runs = [RUN, dataclasses.replace(RUN, seed=1, miou=0.03)]
    runs += [dataclasses.replace(run, variant="softmax", miou=3 * run.miou) for run in runs]
    runs += [dataclasses.replace(run, budget_bytes=MIB, miou=run.miou / 100) for run in runs]
    (table,) = tables(runs)
    none, _, dense, softmax = table.splitlines()[2:]
    assert none.split()[-1] == "-"  # a factor over 0.02 % means nothing
    assert dense.split() == [
        *("12", "dense", "6", "x", "16", "2", "0.02", "100", "11.0", "10", "2"),
        *("2.00", "±", "1.41", "10.00", "±", "0.00", "1.00"),
    ]
    assert softmax.split()[-1] == "3.00"
    assert "6.00 ± 4.24" in softmax


def test_the_rates_that_were_tried_are_shown() -> None:
    tried = dataclasses.replace(RUN, protocol="rates", learning_rate=0.006, held_out_miou=0.015)
    rates, table = tables([tried, dataclasses.replace(tried, learning_rate=0.02), RUN])
    assert rates.splitlines()[2].split() == ["12", "dense", "0.006:", "1.50", "0.02:", "1.50"]
    assert len(table.splitlines()) == 3


def test_the_picture_has_the_same_bytes_for_the_same_runs(tmp_path: Path) -> None:
    runs = [RUN, dataclasses.replace(RUN, protocol="time"), dataclasses.replace(RUN, variant="essnet")]
    for name in ("one.svg", "two.svg"):
        draw(runs, tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert (tmp_path / "one.svg").read_text().count('<g id="axes_') == 2
