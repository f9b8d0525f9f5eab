"""Name the folders and files of a project, each in one place.

data/tiny                 the embedded dataset
data/bootstrapped         masks, manifest and label space made from `data.root`
checkpoints/VARIANT       the best checkpoint, and what to resume from
results/                  what people look at: metrics, tables, curves, the page
evaluations/VARIANT       what the report reads
sweeps/NAME               a sweep; `tune.folder` may name another place
mlflow.db, mlartifacts    the MLflow store, unless MLFLOW_TRACKING_URI names another
mlflow-unsent/            what has not reached the store yet; gone when it has

DVC runs `dvc exp run --temp` and its queue in temporary copies of the project. The store is that of the
project itself.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.config.schema import Settings

TINY = Path("data") / "tiny"
SWEEPS = Path("sweeps")


def tiny_folder(settings: Settings) -> Path:
    """Folder of the embedded dataset, made by the stage prepare."""
    return settings.project / TINY


def bootstrapped_folder(settings: Settings) -> Path:
    """Folder of the masks, manifest and label space made from `data.root`."""
    return settings.project / "data" / "bootstrapped"


def label_space_file(settings: Settings) -> Path:
    """File of the classes that the masks show."""
    return bootstrapped_folder(settings) / "label_space.json"


def checkpoint_folder(settings: Settings) -> Path:
    """Folder of this variant's `best.safetensors`, and, to resume from, `last` and `previous.safetensors`."""
    return settings.project / "checkpoints" / (settings.variant or "default")


def best_checkpoint_file(settings: Settings) -> Path:
    """File of this variant's checkpoint chosen on the held-out part."""
    return checkpoint_folder(settings) / "best.safetensors"


def all_results(settings: Settings) -> Path:
    """Folder of the results of all variants: the report's page, the comparison, the memory curve."""
    return settings.project / "results"


def results_folder(settings: Settings) -> Path:
    """Folder of this variant's metrics.json, per_class.csv and curves, for people to look at."""
    return all_results(settings) / (settings.variant or "default")


def seeds_folder(settings: Settings) -> Path:
    """Folder of what is said of all seeds of this variant."""
    return all_results(settings) / f"{settings.variant or 'default'}-seeds"


def memory_file(settings: Settings) -> Path:
    """File of the memory curve that the stage measure_memory writes and the report reads."""
    return all_results(settings) / "memory.json"


def all_evaluations(settings: Settings) -> Path:
    """Folder of the evaluations of all variants."""
    return settings.project / "evaluations"


def home_folder(project: Path) -> Path:
    """Folder of the project itself, where `project` may be the temporary copy of one of DVC's experiments.

    Such a copy is ROOT/.dvc/tmp/exps/NAME or ROOT/.dvc/tmp/exps/standalone/NAME of the project's root ROOT.
    """
    parts = project.parts
    for end in range(len(parts) - 1, 2, -1):
        if parts[end - 3 : end] != (".dvc", "tmp", "exps"):
            continue
        depth = end + (2 if parts[end] == "standalone" and len(parts) > end + 1 else 1)
        copy = Path(*parts[:depth])
        if (copy / ".git").exists():
            root = next((one for one in (project, *project.parents) if (one / ".dvc").is_dir()), copy)
            return Path(*parts[: end - 3]) / project.relative_to(root if root.is_relative_to(copy) else copy)
    return project


def absolute_path(project: Path, value: Path) -> Path:
    """Return a path of the settings from the root of the file system. Links in it stay links.

    In the temporary copy of one of DVC's experiments, what is not in the copy is that of the project itself.
    """
    place, home = (Path(os.path.normpath(folder / value)) for folder in (project, home_folder(project)))
    inside = place.is_relative_to(project)
    first, second = (place, home) if inside else (home, place)
    return second if second.exists() and not first.exists() else first


def store_file(settings: Settings) -> Path:
    """File of the project's own MLflow store."""
    return home_folder(settings.project) / "mlflow.db"


def artifacts_folder(settings: Settings) -> Path:
    """Folder of the files of the runs in the project's own MLflow store."""
    return home_folder(settings.project) / "mlartifacts"


def unsent_folder(settings: Settings) -> Path:
    """Folder of what has not reached the MLflow store yet, a folder a run."""
    return home_folder(settings.project) / "mlflow-unsent"


def evaluation_folder(settings: Settings) -> Path:
    """Folder of what the report reads about this variant."""
    return all_evaluations(settings) / (settings.variant or "default")
