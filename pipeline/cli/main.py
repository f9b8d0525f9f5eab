"""Define the `pipeline` command: a thin layer that imports what a command needs only when it runs."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Annotated

import typer

import pipeline.runtime.before_torch  # noqa: F401
from pipeline.cli.classes import app as classes_app
from pipeline.cli.compare import compare
from pipeline.cli.data import app as data_app
from pipeline.cli.demo import demo
from pipeline.cli.export import export
from pipeline.cli.init import init
from pipeline.cli.memory import memory
from pipeline.cli.predict import predict
from pipeline.cli.registry import lineage, register
from pipeline.cli.show import show
from pipeline.cli.tracking import sync, ui
from pipeline.cli.tune import app as tune_app
from pipeline.runtime.process import run_process

app = typer.Typer(
    name="pipeline",
    help="Semantic segmentation with more than a thousand classes on a single GPU.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(data_app, name="data")
app.add_typer(classes_app, name="classes")
app.add_typer(tune_app, name="tune")
app.command()(memory)
app.command()(init)
app.command()(predict)
app.command()(demo)
app.command()(export)
app.command()(compare)
app.command()(show)
app.command()(register)
app.command()(lineage)
app.command()(ui)
app.command()(sync)

Params = Annotated[Path, typer.Option("--params", help="The settings file.", show_default=True)]
PARAMS = Path("params.yaml")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"kiloseg {importlib.metadata.version('kiloseg-pipeline')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Semantic segmentation with more than a thousand classes on a single GPU."""


@app.command()
def doctor(params: Params = PARAMS) -> None:
    """Say which versions, GPU, store, data and disk there are, what is missing and how to fix it."""
    from pipeline.doctor.project import examine, show

    findings = examine(params)
    show(findings)
    if any(finding.status == "missing" for finding in findings):
        raise typer.Exit(1)


@app.command()
def evaluate(
    variant: Annotated[str, typer.Argument(help="A variant of the settings file.")],
    split: Annotated[str, typer.Option(help="train, holdout or val.")] = "val",
    params: Params = PARAMS,
) -> None:
    """Print how a trained variant does on a split, without writing anything."""
    import json

    from pipeline.config.load import load_settings
    from pipeline.evaluation.outputs import best_checkpoint, evaluate_checkpoint
    from pipeline.runtime.device import choose_device, set_threads

    settings = load_settings(params, variant=variant)
    set_threads(settings.runtime.threads)
    checkpoint = best_checkpoint(settings)
    segmenter = checkpoint.segmenter().to(choose_device(settings.runtime.device))
    result, _ = evaluate_checkpoint(settings, checkpoint, segmenter, split)
    typer.echo(json.dumps({"split": split, "images": result.images, **result.metrics.flat()}, indent=1))


def main() -> None:
    """Run the command and exit with its code; typer itself exits with code 2 on wrong usage."""
    run_process(app)


if __name__ == "__main__":
    main()
