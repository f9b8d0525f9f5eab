"""Name the folders and files of a project, each in one place.

data/tiny                 the embedded dataset
data/bootstrapped         masks, manifest and label space made from `data.root`
checkpoints/VARIANT       the best checkpoint, and what to resume from
results/                  what people look at: metrics, tables, curves, the page
evaluations/VARIANT       what the report reads
sweeps/NAME               a sweep; `tune.folder` may name another place
"""

from __future__ import annotations

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


def memory_file(settings: Settings) -> Path:
    """File of the memory curve that the stage measure_memory writes and the report reads."""
    return all_results(settings) / "memory.json"


def all_evaluations(settings: Settings) -> Path:
    """Folder of the evaluations of all variants."""
    return settings.project / "evaluations"


def evaluation_folder(settings: Settings) -> Path:
    """Folder of what the report reads about this variant."""
    return all_evaluations(settings) / (settings.variant or "default")
