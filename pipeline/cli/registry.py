"""`pipeline register` and `pipeline lineage`: trained networks in MLflow's model registry."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.store import names_a_checkpoint, use_project_store

Params = Annotated[Path, typer.Option("--params", help="The settings file of the project.")]
PARAMS = Path("params.yaml")


def register(
    source: Annotated[
        str, typer.Argument(help="A trained variant, a checkpoint, a folder with one, or models:/NAME@ALIAS.")
    ],
    name: Annotated[str, typer.Option("--name", help="Of the registered model.")],
    alias: Annotated[str | None, typer.Option("--alias", help="Moved to this version, as champion.")] = None,
    params: Params = PARAMS,
) -> None:
    """Register a trained network as the next version of a model, ready for `mlflow models serve`."""
    from pipeline.config.load import load_settings
    from pipeline.config.paths import best_checkpoint_file
    from pipeline.inference.locate import located

    settings = load_settings(params)
    place: Path | str = source
    if source in settings.variants or not names_a_checkpoint(source):
        settings = load_settings(params, variant=source)
        place = best_checkpoint_file(settings)

    from pipeline.registry.register import register as registered

    use_project_store(settings.project)
    with located(place) as path:
        version = registered(settings, path, name, alias)
    typer.echo(f"{version.uri}: version {version.version} of {version.name}, from {place}")
    typer.echo(f"serve it: mlflow models serve -m {version.uri} --env-manager local")


def lineage(
    source: Annotated[str, typer.Argument(help="A checkpoint, runs:/ID or models:/NAME@ALIAS.")],
    params: Params = PARAMS,
) -> None:
    """Print where a trained network comes from and where it went."""
    from pipeline.config.load import load_settings
    from pipeline.registry.lineage import lineage as traced

    for line in traced(load_settings(params), source).lines():
        typer.echo(line)
