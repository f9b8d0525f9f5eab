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
from tests.paths import ROOT

ALLOWED = {  # floor: the floors it may import
    "models": {"models"},
    "pipeline": {"pipeline", "models"},
    "stages": {"pipeline", "models"},
    "benchmarks": {"benchmarks", "models", "pipeline"},
}
SOURCES = sorted(path for floor in ALLOWED for path in (ROOT / floor).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Full names of all modules that the file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_floors_import_downwards_only(path: Path) -> None:
    floor = path.relative_to(ROOT).parts[0]
    used = {name.partition(".")[0] for name in imported(path)} & set(ALLOWED)
    assert used <= ALLOWED[floor] | ({"stages"} if path.name == "__init__.py" else set())


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_source_files_stay_small_enough_to_read(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("pipeline.training.trainer", {"mlflow", "ray", "dvc"}),
        ("pipeline.cli.main", {"torch", "mlflow", "ray", "timm", "pandas", "lvis"}),
        ("pipeline.config.schema", {"torch", "mlflow", "ray"}),
        ("pipeline.config.load", {"torch", "mlflow", "ray"}),
        ("pipeline.tracking.tracker", {"mlflow", "ray"}),
        ("pipeline.tuning.runner, pipeline.tuning.mlflow_sync, pipeline.tuning.callbacks", {"torch", "timm"}),
        ("models.segmenter", {"mlflow", "ray", "pydantic"}),
    ],
)
def test_importing_a_module_does_not_pull_in(module: str, forbidden: set[str]) -> None:
    code = f"import sys, {module}; print(*sorted({forbidden!r} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == []


def test_models_and_benchmarks_need_only_what_a_bare_gpu_machine_has() -> None:
    available = {"torch", "timm", "triton", "typer", "numpy", "safetensors", "models", "benchmarks"}
    optional = {"cut_cross_entropy", "liger_kernel"}  # peers, measured where installed
    for path in (*(ROOT / "models").rglob("*.py"), ROOT / "benchmarks" / "loss.py"):
        outside = {name.partition(".")[0] for name in imported(path)} - set(sys.stdlib_module_names)
        assert outside <= available | optional | {"huggingface_hub"}, path


def stages() -> dict[str, dict]:
    """Stages of dvc.yaml by name, those under foreach as their template."""
    text = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    return {name: stage.get("do", stage) for name, stage in text.items()}


# what each stage's command reads besides `variants`; the tracking and runtime sections change no result
SECTIONS_READ = {
    "prepare": set(),
    "bootstrap": {"data"},
    "train": {"data", "model", "loss", "train"},
    "evaluate": {"data", "evaluate"},
    "measure_memory": {"model", "loss", "train"},
    "report": set(),
}


@pytest.mark.parametrize("name", SECTIONS_READ)
def test_a_stage_declares_every_section_that_can_change_its_result(name: str) -> None:
    declared = {str(param).partition(".")[0] for param in stages()[name].get("params", [])}
    assert declared <= set(SECTIONS)
    assert declared - {"variants"} == SECTIONS_READ[name]
    source = (ROOT / "stages" / f"{name}.py").read_text(encoding="utf-8")
    used = set(re.findall(r"settings\.(\w+)", source)) & set(SECTIONS) - {"runtime", "tracking"}
    assert used <= declared


def test_every_stage_and_code_dependency_exists() -> None:
    for name, stage in stages().items():
        assert stage["cmd"].startswith(f"python -m stages.{name}")
        for dependency in stage.get("deps", []):
            if "/" in dependency and dependency.split("/")[0] in ALLOWED:
                assert (ROOT / dependency).exists(), dependency
        assert f"stages/{name}.py" in stage["deps"]


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


def test_test_files_have_unique_names() -> None:
    names = [path.name for path in TESTS if path.name not in ("conftest.py", "__init__.py")]
    assert len(names) == len(set(names))
