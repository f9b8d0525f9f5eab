"""Measure what an embedding head learns beside a classifier, from several seeds, on the embedded dataset.

    python -m benchmarks.embedding_head --save
    python -m benchmarks.embedding_head --only embedding --seeds 1

    python -m benchmarks.embedding_head --trials --save

A row trains a variant of params.yaml, some with a setting changed. With --trials the rows are `embedding`
with changes that no setting makes (`embedding_trials`). The seeds are the same in every row, so the order of
the data is too. A run takes about half a minute on a core; one that is finished is kept in FOLDER, and the
same command goes on where it was stopped. docs/LOG.md has what else was tried.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.embedding_trials import (
    LearnedTemperature,
    normalized_again,
    orthogonal_rows,
    rows_as_long_as_in_the_paper,
    rows_of_length,
    spread_rows,
    with_loss,
    with_margin,
    with_table,
)
from benchmarks.runs import Runs, Trial, show
from pipeline.runtime.errors import UsageError
from pipeline.runtime.signals import run_command

BY_DISTANCE: dict[str, object] = {"model.embedding_dim": 16, "loss.similarity": "distance"}
ROWS: dict[str, tuple[str, dict[str, object]]] = {
    "dense": ("dense", {}),
    "softmax": ("softmax", {}),
    "embedding": ("embedding", {}),
    "embedding, temperature 0.07": ("embedding", {"loss.temperature": 0.07}),
    "embedding, temperature 0.035": ("embedding", {"loss.temperature": 0.035}),
    "embedding, projected": ("embedding", {"model.projection": "always"}),
    **{
        f"embedding, class table's rate x {factor:g}": ("embedding", {"train.class_lr_multiplier": factor})
        for factor in (0.3, 3.0, 10.0, 30.0)
    },
    "embedding, distance, D = 16": ("embedding", {**BY_DISTANCE, "loss.temperature": 0.1}),
    "essnet": ("essnet", {}),
    "essnet, distance, D = 16, 0.05 as in the paper": ("essnet", {**BY_DISTANCE, "loss.temperature": 0.05}),
}


TRIALS: dict[str, Trial | None] = {
    "embedding": None,
    "learned temperature, rate 0.01": lambda: with_loss(LearnedTemperature(0.01)),
    "learned temperature, rate 0.1": lambda: with_loss(LearnedTemperature(0.1)),
    "margin 0.05": lambda: with_loss(with_margin(0.05)),
    "margin 0.2": lambda: with_loss(with_margin(0.2)),
    "rows as long as uniform ones, as in the paper": lambda: with_table(rows_as_long_as_in_the_paper),
    "rows of length 0.5": lambda: with_table(rows_of_length(0.5)),
    "orthogonal start": lambda: with_table(orthogonal_rows),
    "spread start": lambda: with_table(spread_rows),
    "normalized after upsampling": lambda: with_loss(normalized_again),
}


def main(
    only: Annotated[list[str] | None, typer.Option(help="Rows by name; default: all.")] = None,
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    trials: Annotated[bool, typer.Option("--trials", help="The changes that no setting makes.")] = False,
    params: Annotated[Path, typer.Option(help="The settings file.")] = Path("params.yaml"),
    folder: Annotated[Path, typer.Option(help="Where data and results are kept.")] = Path("data/runs"),
    keep: Annotated[bool, typer.Option("--save", help="Write the table to benchmarks/results/.")] = False,
) -> None:
    """Train every row from every seed and compare."""
    known = TRIALS if trials else ROWS
    unknown = set(only or []) - set(known)
    if unknown:
        raise UsageError("unknown row", found=", ".join(sorted(unknown)), allowed="; ".join(known))
    runs = Runs(params, folder.resolve())
    rows = {}
    for name in only or known:
        variant, changes = ("embedding", {}) if trials else ROWS[name]
        rows[name] = runs.results(name, variant, changes, seeds, TRIALS[name] if trials else None)
    show("embedding_trials" if trials else "embedding_head", "", rows, keep=keep)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    sys.exit(run_command(app))
