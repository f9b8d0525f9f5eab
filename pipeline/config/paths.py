"""TODO"""

from __future__ import annotations

from pathlib import Path

from pipeline.config.schema import Settings


def checkpoint_folder(settings: Settings) -> Path:
    """Folder of this variant's `best.safetensors`, and, to resume from, `last` and `previous.safetensors`."""
    return settings.project / "checkpoints" / (settings.variant or "default")


def results_folder(settings: Settings) -> Path:
    """What people look at: metrics.json, per_class.csv, curves."""
    return settings.project / "results" / (settings.variant or "default")


def evaluation_folder(settings: Settings) -> Path:
    """What the report reads."""
    return settings.project / "evaluations" / (settings.variant or "default")
