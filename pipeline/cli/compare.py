"""`pipeline compare`: what changed from one result to another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def compare(
    before: Annotated[
        str, typer.Argument(help="VARIANT, REVISION:VARIANT, SWEEP/NUMBER, runs:/ID, or a folder.")
    ],
    after: Annotated[str, typer.Argument(help="The same kinds.")],
    html: Annotated[Path | None, typer.Option("--html", help="Write a page to this file too.")] = None,
    limit: Annotated[int, typer.Option(help="Classes and images listed at most.", min=1)] = 15,
    params: Annotated[Path, typer.Option("--params", help="The settings file of the project.")] = Path(
        "params.yaml"
    ),
) -> None:
    """Print two results side by side: metrics, the classes that moved most, the images that changed most."""
    from pipeline.comparison.compare import compare as compared
    from pipeline.comparison.output import as_text, write_page
    from pipeline.comparison.sources import read_result
    from pipeline.config.load import load_settings

    settings = load_settings(params)
    first, second = (read_result(name, settings) for name in (before, after))
    comparison = compared(first, second, limit=limit)
    typer.echo(as_text(comparison))
    if html is not None:
        write_page(comparison, html)
        typer.echo(f"\nwritten: {html}")
