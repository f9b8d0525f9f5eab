"""`pipeline show`: one image as a variant sees it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def show(
    variant: Annotated[str, typer.Argument(help="A variant of the settings file.")],
    image_id: Annotated[int, typer.Argument(help="Of any split; `pipeline data show` lists them.")],
    save: Annotated[
        Path | None, typer.Option("--save", help="File to write; by default VARIANT-IMAGE_ID.png here.")
    ] = None,
    params: Annotated[Path, typer.Option("--params", help="The settings file.")] = Path("params.yaml"),
) -> None:
    """Predict one image with a trained variant: print its classes, draw truth, prediction and errors."""
    from pipeline.config.load import load_settings
    from pipeline.data.loading.visualize import picture_format
    from pipeline.evaluation.single_image import predict_image
    from pipeline.runtime.files import atomic_path

    settings = load_settings(params, variant=variant)
    path = save or Path(f"{variant}-{image_id}.png")
    kind = picture_format(path)
    found = predict_image(settings, image_id)
    typer.echo("\n".join(found.lines()))
    with atomic_path(path) as temporary:
        found.drawing().save(temporary, format=kind)
    typer.echo(f"\nwritten: {path}")
