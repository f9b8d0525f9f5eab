"""What the driver of a sweep needs to know of its trials: read from files, without torch."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.settings import Settings
from pipeline.settings_file import with_overrides
from pipeline.tuning.sweep import Plan


def trial_settings(plan: Plan, values: Mapping[str, Any]) -> Settings:
    """The settings of the trial with these swept values."""
    return with_overrides(plan.base(), values)


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The whole events of a trial's metrics.jsonl; a line that a kill cut short is left out."""
    if not path.is_file():
        return []
    events = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        with contextlib.suppress(json.JSONDecodeError):
            events.append(json.loads(line))
    return [event for event in events if isinstance(event, dict) and {"step", "metrics"} <= set(event)]


def predicted_gib(place: Path) -> float | None:
    """Predicted peak of a training step of the trial whose folder this is, if it came to predicting."""
    path = place / "predicted.json"
    return float(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None
