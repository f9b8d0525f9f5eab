"""Trainings that differ in the seed: their names, their spread, and what a difference is worth."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient

from pipeline.comparison.compare import compare
from pipeline.comparison.output import as_text
from pipeline.comparison.sources import read_result
from pipeline.config.load import load_settings
from pipeline.config.seeds import repeat_of
from pipeline.evaluation.seeds import Spread, difference, records_of_seeds, spreads
from pipeline.runtime.errors import DataError, UsageError
from stages import average
from tests.pipeline.config.test_load import write
from tests.pipeline.report.test_build import Place, make_record


def record(variant: str, miou: float, seed: int = 0, **changes: object) -> dict[str, Any]:
    found = make_record(variant if seed == 0 else f"{variant}-seed-{seed}", miou=miou)
    found["settings"] |= {"loss.name": variant, "train.seed": seed, **changes}
    return {**found, "seed": seed, "seed_of": None if seed == 0 else variant}


@pytest.fixture
def three_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`softmax` with seeds 0, 1 and 2, one more under other settings, and `dense` with one seed."""
    place = Place(tmp_path)
    for seed, miou in enumerate((0.30, 0.33, 0.27)):
        place.write(record("softmax", miou, seed))
    place.write(record("softmax", 0.9, 3, **{"train.steps": 7}))
    place.write(record("dense", 0.31))
    write(tmp_path, variants={"softmax": {}, "dense": {}}, seeds={"variants": ["softmax"], "values": [1, 2]})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_name_with_a_seed_is_the_variant_with_that_seed(tmp_path: Path) -> None:
    variants = {"a": {"train": {"steps": 7}}, "b-seed": {"train": {"seed": 5}}}
    path = write(tmp_path, variants=variants, seeds={"variants": ["a"], "values": [1]})
    own, repeat = (load_settings(path, variant=name) for name in ("a", "a-seed-1"))
    assert repeat.variant == "a-seed-1"
    assert own.flat() | {"train.seed": 1} == repeat.flat()
    assert load_settings(path, variant="b-seed-seed-0").train.seed == 0
    assert repeat_of("b-seed") is repeat_of("a-seed-01") is repeat_of("-seed-1") is None
    for name, words in (
        ("b-seed-seed-5", "its own seed"),
        ("a-seed-x", "unknown variant"),
        ("c-seed-1", "a,"),
    ):
        with pytest.raises(UsageError, match=words):
            load_settings(path, variant=name)
    for changes, words in (
        ({"seeds": {"variants": ["c"]}}, "'c' is no variant"),
        ({"seeds": {"values": [1, 1]}}, "each one once"),
        ({"variants": {"a": {}, "a-seed-3": {}}}, "means seeds of another"),
        ({"variants": {"a": {}, "a-seeds": {}}}, "means seeds of another"),
    ):
        with pytest.raises(UsageError, match=words):
            load_settings(write(tmp_path, **{"variants": {"a": {}}, **changes}))


def test_a_difference_is_students_and_one_training_beside_several_is_one_more() -> None:
    from scipy.stats import ttest_ind  # takes a second to import

    random = np.random.default_rng(0)
    for first, second in ((3, 4), (2, 2), (1, 3), (5, 1)):
        before, after = random.normal(0.3, 0.02, first), random.normal(0.33, 0.02, second)
        found = difference(before.tolist(), after.tolist())
        assert found is not None
        assert found.gain == pytest.approx(after.mean() - before.mean())
        if min(first, second) > 1:
            expected = ttest_ind(after, before).confidence_interval(0.95)
            assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    alone = difference([0.5], [0.3, 0.33, 0.27])
    assert alone is not None  # t of 2 degrees of freedom, 4.303, times 0.03 sqrt(1 + 1/3)
    assert alone.high - alone.gain == pytest.approx(4.30265 * 0.03 * (4 / 3) ** 0.5, rel=1e-4)
    assert not alone.within_spread
    assert difference([0.1], [0.2]) is difference([], [0.2, 0.3]) is None
    assert Spread((0.3, 0.33, 0.27)).std == pytest.approx(0.03)
    assert Spread((0.3,)).std is None


def test_only_trainings_that_differ_in_the_seed_alone_are_counted(three_seeds: Path) -> None:
    evaluations = three_seeds / "evaluations"
    found = records_of_seeds(evaluations, "softmax")
    assert list(found) == [0, 1, 2]
    assert spreads(found)["miou"].values == (0.30, 0.33, 0.27)
    assert list(records_of_seeds(evaluations, "softmax-seed-2")) == [2]
    assert list(records_of_seeds(evaluations, "dense")) == [0]
    with pytest.raises(DataError, match="not evaluated yet"):
        records_of_seeds(evaluations, "nobody")
    (evaluations / "softmax-seed-1" / "record.json").write_text("{}")
    with pytest.raises(DataError, match="damaged record"):
        records_of_seeds(evaluations, "softmax")


def test_a_difference_within_the_spread_is_said_to_be_one(three_seeds: Path) -> None:
    settings = load_settings(three_seeds / "params.yaml")
    softmax, dense = (read_result(name, settings) for name in ("softmax", "dense"))
    found = compare(dense, softmax)
    assert "31.00 % -> 30.00 % (mean of 3 seeds) (-1.00)" in found.verdict
    assert "within the spread of seeds" in found.verdict
    assert "one seed, ± 3 over seeds; within their spread" in as_text(found)
    far = compare(read_result("dense", settings), read_result("softmax-seed-1", settings))
    assert "What another seed would have given is not in this." in far.verdict
    softmax.seeds[1]["miou"], softmax.seeds[2]["miou"] = 0.301, 0.299
    assert "more than seeds make" in compare(dense, softmax).verdict


def test_other_threads_and_processors_are_named(three_seeds: Path) -> None:
    settings = load_settings(three_seeds / "params.yaml")
    for name, threads, processor in (("softmax", 1, "A"), ("dense", 2, "B")):
        path = three_seeds / "evaluations" / name / "record.json"
        changed = json.loads(path.read_text())
        changed["training"] |= {"threads": threads, "processor": processor}
        path.write_text(json.dumps(changed))
    softmax, dense = (read_result(name, settings) for name in ("softmax", "dense"))
    assert "(threads 1 and 2; processor A and B)" in compare(softmax, dense).verdict
    assert "different machines" not in compare(dense, dense).verdict


@pytest.mark.slow
def test_the_stage_writes_means_and_makes_the_runs_children(three_seeds: Path, empty_store: Path) -> None:
    shutil.copy(empty_store, three_seeds / "mlflow.db")
    client = MlflowClient(f"sqlite:///{three_seeds / 'mlflow.db'}")
    experiment = client.create_experiment("kiloseg", artifact_location=(three_seeds / "a").as_uri())
    runs = []
    for folder in ("softmax", "softmax-seed-1", "softmax-seed-2"):
        runs.append(client.create_run(experiment).info.run_id)
        client.set_terminated(runs[-1])
        path = three_seeds / "evaluations" / folder / "record.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"run_id": runs[-1]}))
    average.main("softmax")
    folder = three_seeds / "results" / "softmax-seeds"
    written = json.loads((folder / "metrics.json").read_text())
    assert written["miou"] == pytest.approx(0.30)
    assert written["miou_std"] == pytest.approx(0.03)
    assert written["seeds"] == 3
    header, first, *_ = (folder / "seeds.csv").read_text().splitlines()
    assert header == "metric,mean,std,seed_0,seed_1,seed_2"
    assert first.startswith("miou,0.3")
    assert first.endswith(",0.3,0.33,0.27")
    found = [client.get_run(run_id) for run_id in runs]
    assert [run.data.tags.get("mlflow.parentRunId") for run in found] == [None, runs[0], runs[0]]
    assert found[0].data.metrics["val/miou_std"] == pytest.approx(0.03)
    assert {run.info.status for run in found} == {"FINISHED"}
