"""Rank a sweep's trials, and write the best one's values into params.yaml.

Only finished trials compete. The Pareto front holds every trial that no other beats in both mIoU and memory.
The best trial is the one with the highest mIoU, whether there are one or two objectives.
"""

from __future__ import annotations

import difflib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from pipeline.config.load import load_settings
from pipeline.config.renamed import RENAMED
from pipeline.config.schema import OF_THE_MACHINE, Settings
from pipeline.runtime.device import resolve_threads
from pipeline.runtime.errors import DataError, UsageError
from pipeline.runtime.files import csv_text, write_text
from pipeline.tuning.sweep import Sweep, SweepPlan, TrialRecord, trial_settings


def pareto_front(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return the finished trials that no other beats.

    A trial beats another with more mIoU at no more memory, or with less memory at no less mIoU.
    """
    finished = [record for record in records if record.outcome == "finished"]

    def is_beaten(record: TrialRecord) -> bool:
        score, memory = record.score or 0.0, record.memory_gib or 0.0
        return any(
            (other.score or 0.0) >= score
            and (other.memory_gib or 0.0) <= memory
            and ((other.score or 0.0) > score or (other.memory_gib or 0.0) < memory)
            for other in finished
        )

    return [record for record in finished if not is_beaten(record)]


def best_trial(sweep: Sweep, number: int | None = None) -> TrialRecord:
    """Return the best finished trial, or trial `number`.

    Raises:
        DataError: no trial has finished.
        UsageError: trial `number` does not exist or has not finished.
    """
    finished = {record.number: record for record in sweep.records() if record.outcome == "finished"}
    if not finished:
        raise DataError(
            "no trial of this sweep has finished",
            where=sweep.folder,
            found=summary(sweep.records()),
            hint=f"go on with it: pipeline tune --resume --name {sweep.folder.name}",
        )
    if number is None:
        return max(finished.values(), key=lambda record: (record.score or 0.0, -(record.memory_gib or 0.0)))
    if number not in finished:
        raise UsageError(
            "not a finished trial",
            where="--trial",
            found=number,
            allowed=", ".join(str(known) for known in finished),
        )
    return finished[number]


def summary(records: Sequence[TrialRecord]) -> str:
    """Count the outcomes, as "5 finished, 3 pruned"."""
    counts: dict[str, int] = {}
    for record in records:
        counts[record.outcome] = counts.get(record.outcome, 0) + 1
    return ", ".join(f"{count} {outcome}" for outcome, count in counts.items()) or "no trials"


def results_csv(plan: SweepPlan, records: Sequence[TrialRecord]) -> str:
    """Write one line per trial, the best first: number, outcome, values, mIoU, step, metrics, error.

    A swept setting that a trial does not use has no value.
    """
    keys = list(plan.space)
    front = {record.number for record in pareto_front(records)}
    metrics = sorted({name for record in records for name in record.metrics})
    rows = [
        [
            record.number,
            record.outcome,
            *(values.get(key, "") for key in keys),
            "" if record.score is None else record.score,
            record.number in front,
            record.step,
            *(record.metrics.get(name, "") for name in metrics),
            record.error or "",
        ]
        for record in ranked(records)
        for values in (plan.used(record.values),)
    ]
    header = ["trial", "outcome", *keys, "miou", "on_pareto_front", "step", *metrics, "error"]
    return csv_text(header, rows)


def ranked(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Sort finished trials by falling mIoU, then the others."""
    return sorted(
        records,
        key=lambda record: (record.outcome != "finished", -(record.score or 0.0), record.number),
    )


def apply_values(path: Path, plan: SweepPlan, record: TrialRecord, *, swept_only: bool = False) -> str:
    """Write what makes `dvc repro` repeat the trial into the settings file, and leave all else unchanged.

    That are its values, what `tune.fixed` gave all trials, and on a CPU their number of threads. A sweep of a
    variant changes that variant alone, so that `dvc repro` retrains nothing else. A sweep of the plain
    settings changes those.

    Args:
        path: the settings file; comments, order and spacing stay.
        plan: the sweep's.
        record: the trial's.
        swept_only: write its values alone.

    Returns:
        The changes as a unified diff; empty if the file has these values already.

    Raises:
        UsageError: the file with these values would not be valid.
    """
    before = path.read_text(encoding="utf-8")
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 10_000
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.representer.add_representer(  # else null is written as nothing
        type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    document = yaml.load(before)
    variant = plan.settings["variant"]
    tree = document if variant is None else document["variants"][variant]
    if tree is None:
        tree = document["variants"][variant] = CommentedMap()
    others = {} if swept_only else _beside_values(load_settings(path, variant=variant), plan)
    for key, value in (others | record.values).items():
        _set(tree, key, value)
    text = io.StringIO()
    yaml.dump(document, text)
    after = _restored(before, text.getvalue())
    trial = path.with_name(f".{path.name}.tuned")
    write_text(trial, after)
    try:
        load_settings(trial, variant=variant)
    finally:
        trial.unlink()
    if after != before:
        write_text(path.resolve(), after)  # a link stays
    lines = difflib.unified_diff(
        before.splitlines(), after.splitlines(), path.name, path.name, n=0, lineterm=""
    )
    return "\n".join(lines)


def _beside_values(settings: Settings, plan: SweepPlan) -> dict[str, Any]:
    """Return what all trials had and the settings lack, by dotted key."""
    had, now = plan.base().flat(), settings.flat()
    fixed = plan.settings["tune"]["fixed"]
    found = {key: fixed[key] for key in fixed if key in had and had[key] != now.get(key)}
    on_cpu = plan.memory_kind == "predicted"
    if on_cpu and plan.threads not in (None, resolve_threads(settings.runtime.threads)):
        found["runtime.threads"] = plan.threads
    return found


def other_settings(path: Path, plan: SweepPlan, record: TrialRecord) -> list[str]:
    """Return in words what the settings file has other than the trial had: reasons for another number."""
    had = trial_settings(plan, record.values)
    now = load_settings(path, variant=plan.settings["variant"])
    before, after = had.flat(), now.flat()
    passed = ("data.root", "evaluate.examples", *OF_THE_MACHINE)
    keys = [key for key in sorted({*before, *after}) if key not in passed]
    return [
        f"{key} {after.get(key)}, in the trial {before.get(key)}"
        for key in keys
        if before.get(key) != after.get(key)
    ]


def _set(tree: CommentedMap, key: str, value: Any) -> None:
    section, _, name = key.partition(".")
    if tree.get(section) is None:
        tree[section] = CommentedMap()
        tree[section].fa.set_flow_style()
    for old, new in RENAMED.items():
        if new == key and old.removeprefix(f"{section}.") in tree[section]:
            _rename(tree[section], old.removeprefix(f"{section}."), name)
    if tree[section].get(name) != value:
        tree[section][name] = value


def _rename(section: CommentedMap, old: str, new: str) -> None:
    """Rename a key in its place, with its comment."""
    section.insert(list(section).index(old), new, section.pop(old))
    if old in section.ca.items:
        section.ca.items[new] = section.ca.items.pop(old)


def _restored(before: str, after: str) -> str:
    """Return `after`, but keep the lines of `before` that differ in spacing alone."""
    old, new = before.splitlines(keepends=True), after.splitlines(keepends=True)
    plain = [["".join(line.split()) for line in lines] for lines in (old, new)]
    result: list[str] = []
    matcher = difflib.SequenceMatcher(a=plain[0], b=plain[1], autojunk=False)
    for tag, first, last, start, end in matcher.get_opcodes():
        result += old[first:last] if tag == "equal" else new[start:end]
    return "".join(result)
