"""Measure what balancing a long tail of classes is worth on the embedded dataset, by frequency.

    python -m benchmarks.long_tail --save

Each row trains the variant of params.yaml with a setting of docs/training.md ("A long tail of classes") on
top. The seeds are the same in every row, so data order and first weights are too. A run takes about half a
minute on a core; one that is finished is kept in FOLDER, and the same command goes on where it was stopped.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.runs import Runs, show
from pipeline.runtime.signals import run_command

SETTINGS: dict[str, dict[str, object]] = {
    "neither": {},
    "logit_adjustment: 1": {"loss.logit_adjustment": 1.0},
    "class_weights: effective_number": {"loss.class_weights": "effective_number"},
}


def main(
    variant: Annotated[str, typer.Option(help="Of params.yaml.")] = "softmax",
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    params: Annotated[Path, typer.Option(help="The settings file.")] = Path("params.yaml"),
    folder: Annotated[Path, typer.Option(help="Where data and results are kept.")] = Path("data/runs"),
    keep: Annotated[bool, typer.Option("--save", help="Write the table to benchmarks/results/.")] = False,
) -> None:
    """Train the variant with each setting and compare."""
    runs = Runs(params, folder.resolve())
    rows = {name: runs.results(name, variant, changes, seeds) for name, changes in SETTINGS.items()}
    show("long_tail", f"{variant}, ", rows, keep=keep)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    sys.exit(run_command(app))
