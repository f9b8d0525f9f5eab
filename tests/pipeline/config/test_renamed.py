"""Settings under their old names are taken for one release, wherever they come from."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import yaml

from pipeline.config.load import load_settings, with_overrides
from pipeline.config.renamed import RENAMED, current_keys, current_names, current_tree
from pipeline.config.schema import Settings
from pipeline.runtime.errors import UsageError
from tests.paths import ROOT

OLD = {"accumulate": 2, "backbone_rate_factor": 0.25}
DOTTED = {f"train.{name}": value for name, value in OLD.items()}


def write(folder: Path, **sections: object) -> Path:
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump({"data": {"root": "data/tiny"}, **sections}))
    return path


def warned(capsys: pytest.CaptureFixture[str]) -> list[str]:
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("warning: ") for line in lines)
    return lines


def assert_taken(settings: Settings) -> None:
    assert settings.train.accumulation_steps == 2
    assert settings.train.backbone_lr_multiplier == 0.25


def test_the_new_names_are_settings_and_the_old_ones_are_not() -> None:
    flat = load_settings(ROOT / "params.yaml").flat()
    assert not RENAMED.keys() & flat.keys()
    assert set(RENAMED.values()) <= flat.keys()


def test_old_names_in_the_file_are_taken_with_a_warning_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, train=OLD, variants={"a": {}, "b": {}})
    assert_taken(load_settings(path, variant="a"))
    lines = warned(capsys)
    assert len(lines) == 2
    assert f"{path}: train.accumulate is now called train.accumulation_steps" in lines[0]
    assert "train.backbone_rate_factor is now called train.backbone_lr_multiplier" in lines[1]


def test_old_names_in_a_variant_override_new_ones_in_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, train={"accumulation_steps": 4}, variants={"a": {"train": OLD}, "b": {}})
    assert_taken(load_settings(path, variant="a"))
    assert load_settings(path, variant="b").train.accumulation_steps == 4
    assert f"{path}: variants.a: train.accumulate is now" in warned(capsys)[0]


def test_old_names_in_overrides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path)
    assert_taken(load_settings(path, overrides=DOTTED))
    assert_taken(with_overrides(load_settings(path), DOTTED, where="--set"))
    assert "--set: train.accumulate is now called train.accumulation_steps" in "".join(warned(capsys))


def test_old_names_in_what_a_sweep_varies_and_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = {"train.accumulate": {"choice": [1, 2]}}
    path = write(tmp_path, tune={"space": space, "fixed": {"train.backbone_rate_factor": 0.5}})
    tune = load_settings(path).tune
    assert tune.space == {"train.accumulation_steps": {"choice": [1, 2]}}
    assert tune.fixed == {"train.backbone_lr_multiplier": 0.5}
    lines = warned(capsys)
    assert "tune.space: train.accumulate is now" in lines[0]
    assert "tune.fixed: train.backbone_rate_factor is now" in lines[1]


@pytest.mark.parametrize("place", ["file", "variant", "space"])
def test_both_names_at_once_are_refused(tmp_path: Path, place: str) -> None:
    both = {"accumulate": 2, "accumulation_steps": 2}
    dotted = {f"train.{name}": {"choice": [1, 2]} for name in both}
    sections = {
        "file": {"train": both},
        "variant": {"variants": {"a": {"train": both}}},
        "space": {"tune": {"space": dotted}},
    }
    with pytest.raises(UsageError, match="named twice") as caught:
        load_settings(write(tmp_path, **sections[place]))
    assert "remove train.accumulate" in str(caught.value)


@pytest.mark.parametrize(
    "sections", [{"train": None}, {"train": 3}, {"variants": [1]}, {"tune": {"space": 1}}]
)
def test_what_is_no_tree_of_settings_is_left_for_the_checks(
    tmp_path: Path, sections: dict[str, object]
) -> None:
    assert current_tree(sections) == sections
    with pytest.raises((UsageError, AttributeError)):
        load_settings(write(tmp_path, **sections))


def test_files_that_kiloseg_wrote_are_read_silently(capsys: pytest.CaptureFixture[str]) -> None:
    assert current_keys({**DOTTED, "loss.name": "knn"}) == {
        "train.accumulation_steps": 2,
        "train.backbone_lr_multiplier": 0.25,
        "loss.name": "knn",
    }
    assert current_names("train", {"accumulate": 3, "steps": 7}) == {"accumulation_steps": 3, "steps": 7}
    assert warned(capsys) == []


def test_a_sweep_planned_under_old_names_goes_on(tmp_path: Path) -> None:
    from pipeline.tuning.sweep import Sweep, SweepPlan, TrialRecord

    settings = load_settings(write(tmp_path)).model_dump(mode="json")
    settings["train"] = {**settings["train"], **OLD}
    for new in ("accumulation_steps", "backbone_lr_multiplier"):
        del settings["train"][new]
    space = {"train.accumulate": {"choice": [1, 2]}}
    sweep = Sweep(tmp_path / "sweeps" / "old")
    sweep.create(SweepPlan("old", settings, space, ["val/miou"], 1, 0, "predicted", True, 3))
    sweep.write(TrialRecord(0, {"train.accumulate": 2}))
    assert_taken(sweep.plan.base())
    assert list(sweep.plan.space) == list(sweep.records()[0].values) == ["train.accumulation_steps"]


def test_a_trial_is_applied_over_the_old_name(tmp_path: Path) -> None:
    from pipeline.tuning.results import apply_values
    from pipeline.tuning.sweep import SweepPlan, TrialRecord

    path = tmp_path / "params.yaml"
    path.write_text("data: {root: data/tiny}\ntrain:\n  accumulate: 1  # parts\n  batch_size: 4\n")
    settings = load_settings(path).model_dump(mode="json")
    plan = SweepPlan("new", settings, {}, ["val/miou"], 1, 0, "predicted", True, 3)
    apply_values(path, plan, TrialRecord(0, {"train.accumulation_steps": 2}))
    assert path.read_text().endswith("  accumulation_steps: 2 # parts\n  batch_size: 4\n")


def test_the_report_reads_a_record_of_before() -> None:
    from pipeline.report.inputs import Record

    training = {
        "steps": 1,
        "seconds": 1.0,
        "peak_memory_kind": "x",
        "device": "cpu",
        "loss_curve": [],
        "validation_curve": [],
    }
    tree = {
        "format": 1,
        "variant": "a",
        "metrics": {},
        "settings": DOTTED,
        "training": training,
        "environment": {},
        "num_classes": 2,
        "parameters": 1,
    }
    assert Record.model_validate_json(json.dumps(tree)).settings == current_keys(DOTTED)


@pytest.mark.training
def test_an_interrupted_training_saved_under_old_names_resumes(project: Path) -> None:
    from pipeline.checkpoint.format import load_checkpoint
    from pipeline.config.paths import checkpoint_folder, results_folder
    from pipeline.evaluation.outputs import evaluate_variant
    from pipeline.tracking.tracker import NoTracker
    from pipeline.training.outputs import write_training
    from pipeline.training.trainer import resumable_state, train

    overrides = {"train.accumulation_steps": 2, "train.steps": 2, "evaluate.max_images": 1}
    settings = load_settings("params.yaml", variant="exact", overrides=overrides)
    whole = train(settings, NoTracker())
    last = checkpoint_folder(settings) / "last.safetensors"
    checkpoint = load_checkpoint(last)
    old = {new: old for old, new in RENAMED.items()}
    progress = {
        old.get(f"train.{name}", name).removeprefix("train."): value
        for name, value in checkpoint.progress.items()
    }
    dataclasses.replace(
        checkpoint,
        settings={old.get(key, key): value for key, value in checkpoint.settings.items()},
        progress={**progress, "finished": False, "accumulate": 2},
    ).save(last)
    state = resumable_state(settings)
    assert state is not None
    assert state.accumulation_steps == 2
    resumed = train(settings, NoTracker())
    assert resumed.state.loss_curve == whole.state.loss_curve

    write_training(settings, resumed)
    path = results_folder(settings) / "training.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({**facts, "accumulate": facts.pop("accumulation_steps")}))
    evaluate_variant(settings)
    record = json.loads((project / "evaluations" / "exact" / "record.json").read_text())
    assert record["training"]["accumulation_steps"] == 2
    assert "accumulate" not in record["training"]
