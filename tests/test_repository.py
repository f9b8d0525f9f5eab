"""The rules of the house, held by tests: import direction, dvc.yaml against settings, packaging."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from pipeline.config.load import load_settings
from pipeline.config.schema import SECTIONS
from tests.imports import file_of, imported_names, module_of, own_imports, reached_from
from tests.paths import ROOT

ALLOWED = {  # floor: the floors it may import
    "models": {"models"},
    "pipeline": {"pipeline", "models"},
    "stages": {"pipeline", "models"},
    "benchmarks": {"benchmarks", "models", "pipeline", "examples"},
    "examples": {"examples", "models"},
}
# Wing: the wings whose modules it may import. From the ground up, so an arrow only goes to a line above.
WINGS = {
    "models.embeddings": "",
    "models.upsampling": "",
    "models.gradients": "",
    "models.normalize": "",
    "models.tiled": "models.embeddings models.upsampling models.gradients",
    "models.fused": "models.embeddings models.upsampling models.gradients",
    "models.compiled": "models.embeddings models.upsampling models.gradients models.tiled",
    "models.implementation": "models.fused models.compiled",
    "models.nearest": "models.embeddings models.upsampling models.tiled models.fused models.compiled "
    "models.implementation",
    "models.losses": "models.embeddings models.upsampling models.gradients models.tiled models.fused "
    "models.compiled models.implementation models.nearest",
    "models.backbone": "",
    "models.decoders": "",
    "models.features": "",
    "models.heads": "models.embeddings models.nearest models.normalize",
    "models.segmenter": "models.embeddings models.backbone models.decoders models.heads",
    "pipeline.runtime": "",
    "pipeline.config": "pipeline.runtime",
    "pipeline.tracking": "pipeline.runtime pipeline.config",
    "pipeline.data.labels": "pipeline.runtime",
    "pipeline.data.store": "pipeline.runtime pipeline.data.labels",
    "pipeline.data.annotations": "pipeline.runtime pipeline.data.labels",
    "pipeline.data.layouts": "pipeline.runtime pipeline.data.labels pipeline.data.store "
    "pipeline.data.annotations",
    "pipeline.data.bootstrap": "pipeline.runtime pipeline.data.labels pipeline.data.store "
    "pipeline.data.annotations pipeline.data.layouts",
    "pipeline.data.check": "pipeline.runtime pipeline.data.labels pipeline.data.store "
    "pipeline.data.annotations pipeline.data.layouts pipeline.data.bootstrap",
    "pipeline.data.loading": "pipeline.runtime pipeline.data.labels pipeline.data.store",
    "pipeline.data.download": "pipeline.runtime",
    "pipeline.data.tiny": "pipeline.runtime pipeline.data.labels",
    "pipeline.train_step": "models pipeline.runtime pipeline.config pipeline.data.loading.batch",
    "pipeline.checkpoint": "models pipeline.runtime pipeline.config pipeline.data.labels pipeline.data.store",
    "pipeline.evaluation": "models pipeline.runtime pipeline.config pipeline.tracking pipeline.data.labels "
    "pipeline.data.store pipeline.data.loading pipeline.checkpoint",
    "pipeline.inference": "models pipeline.runtime pipeline.data.labels pipeline.data.store "
    "pipeline.data.loading pipeline.checkpoint",
    "pipeline.demo": "pipeline.runtime pipeline.data.loading pipeline.inference",
    "pipeline.classes": "models pipeline.runtime pipeline.data.labels pipeline.data.store "
    "pipeline.checkpoint pipeline.inference",
    "pipeline.export": "models pipeline.runtime pipeline.data.labels pipeline.checkpoint pipeline.inference",
    "pipeline.memory": "models pipeline.runtime pipeline.config pipeline.data.labels pipeline.train_step",
    "pipeline.training": "models pipeline.runtime pipeline.config pipeline.tracking pipeline.data.labels "
    "pipeline.data.store pipeline.data.loading "
    "pipeline.train_step pipeline.checkpoint pipeline.evaluation pipeline.memory",
    "pipeline.tuning": "pipeline.runtime pipeline.config pipeline.tracking pipeline.data.labels "
    "pipeline.checkpoint pipeline.evaluation pipeline.memory pipeline.training",
    "pipeline.report": "pipeline.runtime pipeline.config pipeline.data.store pipeline.data.loading.palette "
    "pipeline.evaluation.image_counts pipeline.evaluation.picture_file pipeline.evaluation.seeds",
    "pipeline.registry": "pipeline.runtime pipeline.config pipeline.tracking pipeline.checkpoint "
    "pipeline.inference",
    "pipeline.comparison": "pipeline.runtime pipeline.config pipeline.tracking "
    "pipeline.evaluation.image_counts pipeline.evaluation.seeds pipeline.tuning.sweep pipeline.report",
    "pipeline.doctor": "pipeline.runtime pipeline.config pipeline.tracking pipeline.data.labels",
    "pipeline.cli": "models pipeline",
}
NO_RESULT = ("pipeline.runtime", "pipeline.config", "pipeline.tracking")  # wings that change no result
SOURCES = sorted(path for floor in ALLOWED for path in (ROOT / floor).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def within(module: str, place: str) -> bool:
    """Whether a module is a place (a module or package) or lies in it."""
    return module == place or module.startswith(f"{place}.")


@pytest.mark.parametrize(
    "path", [path for path in SOURCES if path.relative_to(ROOT).parts[0] in ("models", "pipeline")]
)
def test_a_wing_imports_only_the_wings_of_its_line(path: Path) -> None:
    module = module_of(path)
    if module in ("models", "pipeline", "pipeline.data"):
        return  # the packages themselves: a docstring, and the public face of models
    wings = [wing for wing in WINGS if within(module, wing)]
    assert len(wings) == 1, f"{module} lies in no wing"
    allowed = [*wings, *WINGS[wings[0]].split()]
    used = own_imports(path)
    assert [name for name in sorted(used) if not any(within(name, place) for place in allowed)] == []


def test_the_table_of_wings_has_no_circle_and_nothing_left_over() -> None:
    above: list[str] = ["models", "pipeline"]
    for wing, allowed in WINGS.items():
        assert file_of(wing) is not None, wing
        for place in allowed.split():
            assert wing == "pipeline.cli" or any(within(place, one) for one in above[2:]) or place == "models"
        above.append(wing)
    for package in ("pipeline", "pipeline/data"):
        assert [path.name for path in (ROOT / package).glob("*.py")] == ["__init__.py"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_floors_import_downwards_only(path: Path) -> None:
    floor = path.relative_to(ROOT).parts[0]
    used = {name.partition(".")[0] for name in imported_names(path)} & set(ALLOWED)
    assert used <= ALLOWED[floor] | ({"stages"} if path.name == "__init__.py" else set())


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_source_files_stay_small_enough_to_read(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


HEAVY = {"torch", "mlflow", "ray", "timm", "pandas", "lvis"}


@pytest.mark.process
@pytest.mark.parametrize(
    "imports",
    [
        [  # in one process: what an import may bring, the next may too
            ("pipeline.config.schema", HEAVY),
            ("pipeline.config.load", HEAVY),
            ("pipeline.tracking.tracker", HEAVY),
            ("pipeline.cli.main", HEAVY),
            ("stages.report", {"torch", "timm", "ray"}),
            ("pipeline.tuning.runner", {"torch", "timm"}),
            ("pipeline.tuning.mlflow_sync", {"torch", "timm"}),
            ("pipeline.tuning.callbacks", {"torch", "timm"}),
        ],
        [
            ("models.segmenter", {"mlflow", "ray", "pydantic"}),
            ("pipeline.training.trainer", {"mlflow", "ray", "dvc", "lvis"}),
            ("pipeline.inference.predict_files", {"mlflow", "ray", "dvc", "lvis"}),
        ],
    ],
    ids=["without torch", "with torch"],
)
def test_importing_a_module_does_not_pull_in(imports: list[tuple[str, set[str]]]) -> None:
    lines = [f"import {module}; print({module!r}, {other!r} & set(sys.modules))" for module, other in imports]
    code = "\n".join(["import os, sys", *lines, "sys.stdout.flush(); os._exit(0)"])
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines() == [f"{module} set()" for module, _ in imports]


def test_models_and_benchmarks_need_only_what_a_bare_gpu_machine_has() -> None:
    available = {"torch", "timm", "triton", "typer", "numpy", "safetensors", "models", "benchmarks"}
    optional = {"numba", "cut_cross_entropy", "liger_kernel"}  # used or measured where installed
    benchmarks = [ROOT / "benchmarks" / f"{name}.py" for name in ("gpu", "loss", "step")]
    for path in (*(ROOT / "models").rglob("*.py"), *benchmarks):
        outside = {name.partition(".")[0] for name in imported_names(path)} - set(sys.stdlib_module_names)
        assert outside <= available | optional | {"huggingface_hub"}, path


def stages() -> dict[str, dict]:
    """Stages of dvc.yaml by name, those under foreach as their template."""
    text = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    return {name: stage.get("do", stage) for name, stage in text.items()}


def module_of_stage(name: str) -> str:
    """The module of stages/ that a stage runs: a training with another seed has that of a variant."""
    return name.removesuffix("_seed")


# what each stage's command reads besides `variants`; the tracking and runtime sections change no result
SECTIONS_READ = {
    "prepare": set(),
    "bootstrap": {"data"},
    "train": {"data", "model", "loss", "train"},
    "evaluate": {"data", "evaluate"},
    "measure_memory": {"model", "loss", "train"},
    "report": set(),
    "train_seed": {"data", "model", "loss", "train"},
    "evaluate_seed": {"data", "evaluate"},
    "average": {"seeds"},
}


@pytest.mark.parametrize("name", SECTIONS_READ)
def test_a_stage_declares_every_section_that_can_change_its_result(name: str) -> None:
    declared = {str(param).partition(".")[0] for param in stages()[name].get("params", [])}
    assert declared <= set(SECTIONS)
    assert declared - {"variants"} == SECTIONS_READ[name]
    source = (ROOT / "stages" / f"{module_of_stage(name)}.py").read_text(encoding="utf-8")
    used = set(re.findall(r"settings\.(\w+)", source)) & set(SECTIONS) - {"runtime", "tracking"}
    assert used <= declared


def test_a_training_under_settings_of_before_comes_from_dvcs_cache() -> None:
    """DVC keeps no run whose outputs persist or, metrics and plots aside, are not cached."""
    for out in stages()["train"]["outs"]:
        assert isinstance(out, str), f"{out}: going back to earlier settings would train again"


@pytest.mark.parametrize("name", SECTIONS_READ)
def test_a_stage_declares_all_code_that_it_reaches(name: str) -> None:
    """Transitively, functions' own imports included, so that no edit goes stale silently."""
    declared = [
        dependency.removesuffix(".py").replace("/", ".")
        for dependency in stages()[name]["deps"]
        if dependency.split("/")[0] in ALLOWED
    ]
    own = f"stages.{module_of_stage(name)}"
    reached = {module for module in reached_from(own) if module != own}
    missing = [
        module
        for module in sorted(reached)
        if not any(within(module, place) for place in (*declared, *NO_RESULT))
    ]
    assert missing == []
    assert 2 <= len(declared) <= 10
    for place in declared[1:]:  # and nothing that it does not reach
        assert any(within(module, place) for module in reached), place


def test_packages_that_no_stage_declares_hold_no_code() -> None:
    for package in ("pipeline", "pipeline/data", "stages", "pipeline/data/loading"):
        tree = ast.parse((ROOT / package / "__init__.py").read_text(encoding="utf-8"))
        assert len(tree.body) == 1, package


def test_artifacts_name_the_checkpoint_of_every_variant() -> None:
    tree = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    variants = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))["variants"]
    assert set(tree["artifacts"]) == set(variants)
    for name, artifact in tree["artifacts"].items():
        assert artifact["path"] == f"checkpoints/{name}/best.safetensors"
        assert artifact["type"] == "model"
        assert artifact["desc"]
        assert artifact["labels"]


def test_every_stage_and_code_dependency_exists() -> None:
    for name, stage in stages().items():
        assert stage["cmd"].startswith(f"python -m stages.{module_of_stage(name)}")
        for dependency in stage.get("deps", []):
            if "/" in dependency and dependency.split("/")[0] in ALLOWED:
                assert (ROOT / dependency).exists(), dependency
        assert f"stages/{module_of_stage(name)}.py" in stage["deps"]


def test_another_seed_has_the_stages_of_its_variant() -> None:
    """But for the names, which hold the seed: DVC makes no stages of lists in a variant."""
    found = stages()
    for name in ("train", "evaluate"):
        repeat = str({key: value for key, value in found[f"{name}_seed"].items() if key != "matrix"})
        as_variant = repeat.replace("variants.${item.variant}", "variants.${key}").replace(
            "${item.variant}-seed-${item.seed}", "${key}"
        )
        assert {**ast.literal_eval(as_variant), "desc": ""} == {**found[name], "desc": ""}


def test_stages_are_thin() -> None:
    for path in (ROOT / "stages").glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 60, path


def test_params_yaml_spells_out_every_setting_of_the_sections_it_has() -> None:
    text = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    settings = load_settings(ROOT / "params.yaml")
    for section in set(SECTIONS) - {"variants"}:
        assert set(text[section]) == set(type(getattr(settings, section)).model_fields), section


def test_no_machine_path_or_package_host_is_named() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    forbidden = (
        ("/", "work/"),
        ("/opt/", "wheels"),
        ("python", "hosted"),
        ("pypi", ".org"),
    )  # not whole here
    words = re.compile("|".join(re.escape(start + end) for start, end in forbidden))
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if path.is_file() and path.suffix in {".py", ".md", ".toml", ".txt", ".yaml", ".json", ".html", ""}:
            found = words.search(path.read_text(encoding="utf-8", errors="replace"))
            assert found is None, f"{name}: {found}"


def test_pinned_versions_satisfy_the_declared_bounds() -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    pins = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            pins[canonicalize_name(name)] = version
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for text in (*project["project"]["dependencies"], *project["dependency-groups"]["dev"]):
        requirement = Requirement(text)
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), text
