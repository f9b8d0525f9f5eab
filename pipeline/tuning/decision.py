"""The end of a sweep: a trial's values written into params.yaml, everything else in it left as it was."""

from __future__ import annotations

import difflib
import io
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from pipeline.atomic_file import write_text
from pipeline.settings_file import load_settings
from pipeline.tuning.sweep import Plan, TrialRecord


def apply_values(path: Path, plan: Plan, record: TrialRecord) -> str:
    """Writes the trial's values into the settings file.

    A sweep over a variant changes that variant alone, so that `dvc repro` retrains it and nothing else; a
    sweep over the plain settings changes those.

    Args:
        path: the settings file; comments, order and spacing stay.
        plan: the sweep's.
        record: the trial's.

    Returns:
        What changed, as a unified diff; empty when the file says so already.

    Raises:
        UsageProblem: the file with these values would not be valid.
    """
    before = path.read_text(encoding="utf-8")
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 10_000
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.representer.add_representer(  # else null becomes nothing
        type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    document = yaml.load(before)
    variant = plan.settings["variant"]
    tree = document if variant is None else document["variants"][variant]
    if tree is None:
        tree = document["variants"][variant] = CommentedMap()
    for key, value in record.values.items():
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
        write_text(path, after)
    lines = difflib.unified_diff(
        before.splitlines(), after.splitlines(), path.name, path.name, n=0, lineterm=""
    )
    return "\n".join(lines)


def _set(tree: CommentedMap, key: str, value: Any) -> None:
    section, _, name = key.partition(".")
    if tree.get(section) is None:
        tree[section] = CommentedMap()
        tree[section].fa.set_flow_style()
    if tree[section].get(name) != value:
        tree[section][name] = value


def _restored(before: str, after: str) -> str:
    """`after`, with every line that differs from its original in spacing alone as it was in `before`."""
    old, new = before.splitlines(keepends=True), after.splitlines(keepends=True)
    plain = [["".join(line.split()) for line in lines] for lines in (old, new)]
    result: list[str] = []
    matcher = difflib.SequenceMatcher(a=plain[0], b=plain[1], autojunk=False)
    for tag, first, last, start, end in matcher.get_opcodes():
        result += old[first:last] if tag == "equal" else new[start:end]
    return "".join(result)
