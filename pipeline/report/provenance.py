"""Say what gives the report's numbers again."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.report.inputs import Variant

_DIRTY = "-dirty"


def is_dirty(variants: Sequence[Variant]) -> bool:
    """Tell whether tracked files differed from the commit when a variant was evaluated."""
    return any(commit.endswith(_DIRTY) for commit in _commits(variants))


def commands(variants: Sequence[Variant]) -> list[str]:
    """Return the commands that make every number of the variants again, from the commits they are of."""
    lines = []
    commits = _commits(variants)
    for commit in dict.fromkeys(commits):
        names = [one.name for one, of_one in zip(variants, commits, strict=True) if of_one == commit]
        plain = commit.removesuffix(_DIRTY)
        if len(plain) == 40:
            lines.append(f"git checkout {plain}")
        lines += ["make setup && source .venv/bin/activate"] if not lines or len(plain) == 40 else []
        lines.append(f"dvc repro {' '.join(f'evaluate@{name}' for name in names)}")
    return [*lines, "dvc repro"]


def _commits(variants: Sequence[Variant]) -> list[str]:
    return [str(variant.record.environment.get("git_commit", "")) for variant in variants]
