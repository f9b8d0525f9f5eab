"""Summarize the trainings of a variant that differ in the seed alone: mean, spread, worth of a difference.

The spread is the standard deviation of one training (n - 1). Whether two variants differ is judged by
Student's interval of the difference of their means, with one spread for both: so a variant with one seed can
be compared with another that has several.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from pipeline.config.seeds import repeat_name, repeat_of
from pipeline.evaluation.summary import Number, shown
from pipeline.runtime.errors import DataError
from pipeline.runtime.files import csv_text

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Spread:
    """Hold a number of one or more trainings.

    Attributes:
        values: of each training.
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Return their mean."""
        return fmean(self.values)

    @property
    def std(self) -> float | None:
        """Return the standard deviation of one training; None with one."""
        return stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Difference:
    """Say what lies between the means of two groups of trainings.

    Attributes:
        gain: the second mean less the first.
        low: lower end of its 95 % interval over seeds.
        high: upper end.
    """

    gain: float
    low: float
    high: float

    @property
    def within_spread(self) -> bool:
        """Tell whether seeds alone could have made it."""
        return self.low <= 0 <= self.high


def difference(before: Sequence[float], after: Sequence[float]) -> Difference | None:
    """Compare two groups of trainings; None unless one of them has two."""
    freedom = len(before) + len(after) - 2
    if not before or not after or freedom < 1:
        return None
    from scipy.stats import t

    squares = sum((value - fmean(group)) ** 2 for group in (before, after) for value in group)
    spread = math.sqrt(squares / freedom * (1 / len(before) + 1 / len(after)))
    gain, half = fmean(after) - fmean(before), float(t.ppf(0.975, freedom)) * spread
    return Difference(gain, gain - half, gain + half)


def records_of_seeds(evaluations: Path, variant: str) -> dict[int, Record]:
    """Read the records of a variant's trainings by their seeds, its own first.

    A training with another seed counts if its settings are the variant's in all else.

    Args:
        evaluations: one folder per training.
        variant: name of the variant; of a training with another seed, that one alone is returned.

    Raises:
        DataError: the variant is not evaluated, or a record is damaged.
    """
    own = _read(evaluations / variant / "record.json")
    found = {_seed(own): own}
    if repeat_of(variant) is not None and own.get("seed_of") is not None:
        return found
    for path in evaluations.glob(f"{repeat_name(variant, 0)[:-1]}*/record.json"):
        other = _read(path)
        if other.get("seed_of") == variant and _but_seed(other) == _but_seed(own):
            found.setdefault(_seed(other), other)
    first, *others = found
    return {seed: found[seed] for seed in (first, *sorted(others))}


def spreads(records: Mapping[int, Record]) -> dict[str, Spread]:
    """Return the spread of every metric that all records have, in the order of the first."""
    metrics = [record["metrics"] for record in records.values()]
    return {
        name: Spread(tuple(float(one[name]) for one in metrics))
        for name in metrics[0]
        if all(one.get(name) is not None for one in metrics)
    }


def seeds_table(records: Mapping[int, Record]) -> str:
    """Return CSV with a line a metric: mean, spread, and a column a seed."""
    rows = [
        [name, one.mean, "" if one.std is None else one.std, *one.values]
        for name, one in spreads(records).items()
    ]
    return csv_text(["metric", "mean", "std", *(f"seed_{seed}" for seed in records)], rows)


def summary_of_seeds(records: Mapping[int, Record]) -> dict[str, Number]:
    """Return the means of what a variant's metrics.json holds, the spread of mIoU, and how many seeds."""
    found = spreads(records)
    summary = shown({name: one.mean for name, one in found.items()})
    if "miou" in found:
        summary["miou_std"] = found["miou"].std
    return {**summary, "seeds": len(records)}


def _seed(record: Record) -> int:
    return int(record["settings"].get("train.seed", 0))


def _but_seed(record: Record) -> dict[str, object]:
    return {key: value for key, value in record["settings"].items() if key != "train.seed"}


def _read(path: Path) -> Record:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        _seed(record), dict(record["metrics"])
    except FileNotFoundError as error:
        hint = f"dvc repro evaluate@{path.parent.name}"
        raise DataError("a variant is not evaluated yet", where=path, hint=hint) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        hint = "remove its folder and evaluate it again: dvc repro"
        raise DataError("a damaged record of an evaluation", where=path, found=error, hint=hint) from error
    assert isinstance(record, dict)
    return record
