"""`pipeline classes`: the classes of a trained checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.store import use_project_store

if TYPE_CHECKING:
    from pipeline.checkpoint.format import Checkpoint

app = typer.Typer(
    help="List the classes of a trained checkpoint; add one from a few pictures, remove, rename.",
    no_args_is_help=True,
)

Source = Annotated[
    str | None,
    typer.Option("--checkpoint", help="File, folder or models:/NAME@ALIAS; by default the best variant's."),
]
Out = Annotated[Path, typer.Option("--out", help="File for the changed checkpoint.")]
Name = Annotated[str, typer.Argument(help="Name or class id.")]


@app.command("list")
def list_(checkpoint: Source = None) -> None:
    """Print id, name, source and frequency of every class."""
    for entry in _read(checkpoint, header_only=True).label_space.classes:
        typer.echo(f"{entry.class_id}\t{entry.name}\t{entry.source}\t{entry.frequency}")


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="Name of the new class.")],
    images: Annotated[Path, typer.Option(help="Folder of the pictures.")],
    masks: Annotated[Path, typer.Option(help="Folder of masks NAME.png: the class's pixels are not 0.")],
    out: Out,
    checkpoint: Source = None,
    tune: Annotated[bool, typer.Option("--tune", help="Fit the new row to these pixels.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Add a class from the labeled pixels of a handful of pictures, without training, in seconds."""
    from pipeline.classes.edit import add_class, check_new_name
    from pipeline.classes.examples import find_pairs, read_examples
    from pipeline.classes.new_class import find_row
    from pipeline.runtime.device import choose_device, set_threads

    _check_free(out)
    pairs = find_pairs(images, masks)
    trained = _read(checkpoint)
    check_new_name(trained.label_space, name)
    set_threads("auto")
    segmenter = trained.segmenter().to(choose_device(device))
    examples = read_examples(segmenter, pairs)
    temperature = float(str(trained.settings.get("loss.temperature", 1.0)))
    row = find_row(segmenter, examples, temperature=temperature, tune=tune)
    about = {"pictures": examples.pictures, "pixels": int(examples.weights[examples.positive].sum())}
    changed = add_class(trained, name, row.rows, about={**about, "iou_on_them": round(row.iou, 4)})
    changed.save(out)
    typer.echo(
        f"{out}: {name} is class {changed.label_space.num_classes}, from {about['pixels']:,} pixels of "
        f"{examples.pictures} picture{'s' * (examples.pictures != 1)}, on which its IoU is {row.iou:.2f}"
    )


@app.command()
def remove(
    classes: Annotated[list[str], typer.Argument(help="Names or class ids.")],
    out: Out,
    checkpoint: Source = None,
) -> None:
    """Remove classes; the others are numbered anew."""
    from pipeline.classes.edit import remove_classes

    _check_free(out)
    changed = remove_classes(_read(checkpoint), classes)
    changed.save(out)
    typer.echo(f"{out}: {changed.label_space.num_classes} classes")


@app.command()
def rename(
    old: Name,
    new: Annotated[str, typer.Argument(help="The new name.")],
    out: Out,
    checkpoint: Source = None,
) -> None:
    """Give a class another name."""
    from pipeline.classes.edit import rename_class

    _check_free(out)
    rename_class(_read(checkpoint), old, new).save(out)
    typer.echo(f"{out}: {old} is called {new}")


def _read(source: str | None, *, header_only: bool = False) -> Checkpoint:
    from pipeline.checkpoint.format import load_checkpoint
    from pipeline.inference.locate import best_variant, located

    use_project_store(Path.cwd())
    with located(source or best_variant(Path.cwd())) as path:
        return load_checkpoint(path, header_only=header_only)


def _check_free(out: Path) -> None:
    from pipeline.runtime.errors import UsageError

    if out.exists():
        raise UsageError("will not overwrite a file", where=out, allowed="a new name", hint="name another")
