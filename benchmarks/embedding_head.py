"""Measure what an embedding head learns beside a classifier, from several seeds, on the embedded dataset.

    python -m benchmarks.embedding_head --save
    python -m benchmarks.embedding_head --only embedding --seeds 1

A row trains a variant of params.yaml, some with a setting changed. The seeds are the same in every row, so
the order of the data is too. A run takes about half a minute on a core; one that is finished is kept in
FOLDER, and the same command goes on where it was stopped. docs/LOG.md has what else was tried.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.runs import Runs, show
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
    "embedding, distance, D = 16": ("embedding", {**BY_DISTANCE, "loss.temperature": 0.1}),
    "essnet": ("essnet", {}),
    "essnet, distance, D = 16, 0.05 as in the paper": ("essnet", {**BY_DISTANCE, "loss.temperature": 0.05}),
}


def main(
    only: Annotated[list[str] | None, typer.Option(help="Rows by name; default: all.")] = None,
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    params: Annotated[Path, typer.Option(help="The settings file.")] = Path("params.yaml"),
    folder: Annotated[Path, typer.Option(help="Where data and results are kept.")] = Path("data/runs"),
    keep: Annotated[bool, typer.Option("--save", help="Write the table to benchmarks/results/.")] = False,
) -> None:
    """Train every row from every seed and compare."""
    unknown = set(only or []) - set(ROWS)
    if unknown:
        raise UsageError("unknown row", found=", ".join(sorted(unknown)), allowed="; ".join(ROWS))
    runs = Runs(params, folder.resolve())
    rows = {name: runs.results(name, *ROWS[name], seeds) for name in only or ROWS}
    show("embedding_head", "", rows, keep=keep)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    sys.exit(run_command(app))
