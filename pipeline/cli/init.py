"""Define `pipeline init`: a settings file for a published dataset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pipeline.config.recipes import Values
    from pipeline.config.schema import Settings


def init(
    dataset: Annotated[
        str, typer.Option(help="cityscapes, voc, ade20k, cocostuff10k or coco_lvis; docs/reproduce.md.")
    ],
    root: Annotated[Path | None, typer.Option(help="Folder of the dataset; by default data/DATASET.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Name of a timm model; by default resnet50.")] = None,
    budget: Annotated[
        str | None, typer.Option(help="GPU memory to stay in, as 11GiB: sets accumulation by prediction.")
    ] = None,
    to: Annotated[Path, typer.Option(help="File to write.")] = Path("params.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
) -> None:
    """Write a settings file with the paper's values for a dataset, ready for `dvc repro`."""
    from pipeline.cli.memory import parse_budget
    from pipeline.config.load import load_settings
    from pipeline.config.recipes import as_overrides, recipe, render
    from pipeline.runtime.errors import UsageError
    from pipeline.runtime.files import write_text

    if to.exists() and not force:
        raise UsageError(
            "the settings file is there already", where=to, hint="--force replaces it; --to names another"
        )
    changes: dict[str, object] = {} if backbone is None else {"model.backbone": backbone}
    place = root or Path("data") / dataset
    num_classes, values = recipe(dataset, str(place), changes)
    images = int(str(values["train.effective_batch_size"][0]))
    values |= {"train.batch_size": (images, "images of an optimization step")}
    values["train.effective_batch_size"] = (None, "for batch_size: auto")
    limit = None if budget is None else parse_budget(budget)
    draft = to.with_name(f".{to.name}.draft")
    write_text(draft, render(dataset, values))
    try:
        if limit is not None:
            values |= _division(load_settings(draft), num_classes, limit)
            write_text(draft, render(dataset, values))
        load_settings(draft)
        draft.replace(to)
    finally:
        draft.unlink(missing_ok=True)
    typer.echo(f"{to}: {dataset}, {num_classes:,} classes, {images} images a step")
    if limit is not None:
        typer.echo(f"train.accumulation_steps: {as_overrides(values)['train.accumulation_steps']}")
    typer.echo("next: pipeline doctor, then dvc repro" if place.is_dir() else _fetching(dataset, place))


def _division(settings: Settings, num_classes: int, budget: int) -> Values:
    """Return the accumulation that is predicted to fit into the budget, as settings with remarks."""
    from pipeline.memory.batch_size import min_accumulation
    from pipeline.runtime.device import GIB

    fit = min_accumulation(settings, num_classes, budget)
    remark = f"{fit.predicted_bytes / GIB:.2f} GiB predicted, {fit.micro_batch_size} images at a time"
    return {"train.accumulation_steps": (fit.accumulation_steps, remark)}


def _fetching(dataset: str, place: Path) -> str:
    if dataset == "cityscapes":
        check = f"pipeline data check {place} --layout cityscapes"
        return f"next: unpack gtFine and leftImg8bit in {place}, then {check}"
    more = f" and pipeline data fetch sbd {place}" if dataset == "voc" else ""
    return f"next: pipeline data fetch {dataset} {place}{more}, then dvc repro"
