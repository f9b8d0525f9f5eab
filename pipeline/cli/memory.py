"""Run `pipeline memory`: predict what a training step needs before a GPU is rented for it."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.config.paths import label_space_file
from pipeline.config.reading import parse_yaml
from pipeline.runtime.errors import UsageError

if TYPE_CHECKING:
    from pipeline.config.schema import Settings
    from pipeline.memory.predict import MemoryRow


def memory(
    params: Annotated[Path, typer.Option("--params", help="The settings file.", show_default=True)] = Path(
        "params.yaml"
    ),
    variant: Annotated[
        str | None, typer.Option(help="A variant's settings; default: the plain ones.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Memory of a GPU, as 11GiB: answers the largest batch that fits.")
    ] = None,
    classes: Annotated[
        list[int] | None, typer.Option(help="Number of classes; repeat it for more.", min=2)
    ] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE, as train.crop_size=512; repeat it for more.")
    ] = None,
) -> None:
    """Predict, without a GPU, the peak memory of one training step; measure it too where there is one."""
    from pipeline.config.load import load_settings

    budget_bytes = None if budget is None else parse_budget(budget)
    settings = load_settings(params, variant=variant, overrides=parse_changes(change or []))

    from pipeline.memory.predict import CLASS_COUNTS, NOTE, measuring_device, memory_rows
    from pipeline.runtime.device import set_threads

    set_threads(settings.runtime.threads)
    typer.echo(_described(settings))
    if budget_bytes is None:
        device = measuring_device(settings)
        _show(memory_rows(settings, classes or CLASS_COUNTS, device=device), device is not None)
    else:
        for num_classes in classes or [_bootstrapped_classes(settings)]:
            _answer(settings, num_classes, budget_bytes)
    typer.echo(NOTE)


def _described(settings: Settings) -> str:
    model, train = settings.model, settings.train
    return (
        f"One training step of {model.backbone}, output stride {model.output_stride}, decoder "
        f"{model.decoder} {model.decoder_channels}, embedding dim {model.embedding_dim}, "
        f"loss {settings.loss.name}: {train.images_per_step} crops of {train.crop_size} x {train.crop_size}, "
        f"{train.micro_batch_size} at a time, {train.precision}"
    )


def _show(rows: list[MemoryRow], with_measured: bool) -> None:
    by_key = {(row.head, row.num_classes): row for row in rows}
    heads, counts = dict.fromkeys(row.head for row in rows), dict.fromkeys(row.num_classes for row in rows)
    titles = [f"{head} predicted" for head in heads]
    if with_measured:
        titles = [f"{head} {kind}" for head in heads for kind in ("predicted", "measured")]
    typer.echo(f"{'classes':>10}" + "".join(f"{title:>22}" for title in titles) + "   (GiB)")
    for count in counts:
        cells = []
        for head in heads:
            row = by_key[head, count]
            cells.append(f"{row.predicted_gib:.3f}")
            if with_measured:
                cells.append("out of memory" if row.measured_gib is None else f"{row.measured_gib:.3f}")
        typer.echo(f"{count:>10,}" + "".join(f"{cell:>22}" for cell in cells))


def _answer(settings: Settings, num_classes: int, budget_bytes: int) -> None:
    from pipeline.memory.batch_size import largest_batch, min_accumulation
    from pipeline.runtime.device import GIB

    fit = largest_batch(settings, num_classes, budget_bytes)
    typer.echo(
        f"{num_classes:,} classes, head {settings.model.head}: train.batch_size {fit.batch_size} fits into "
        f"{budget_bytes / GIB:.2f} GiB ({fit.predicted_bytes / GIB:.2f} GiB predicted; "
        f"{fit.batch_size + 1} would take {fit.next_predicted_bytes / GIB:.2f})"
    )
    images = settings.train.images_per_step
    if images > fit.batch_size:
        divided = min_accumulation(settings, num_classes, budget_bytes)
        typer.echo(
            f"{images} images a step fit with train.accumulation_steps {divided.accumulation_steps}: "
            f"{divided.micro_batch_size} at a time, {divided.predicted_bytes / GIB:.2f} GiB predicted"
        )


def _bootstrapped_classes(settings: Settings) -> int:
    """Return C of the bootstrapped label space, or of LVIS and COCO-Stuff merged where there is none yet."""
    from pipeline.data.labels.label_space import LabelSpace

    path = label_space_file(settings)
    return LabelSpace.load(path).num_classes if path.is_file() else 1_284


def parse_changes(texts: list[str]) -> dict[str, object]:
    """Return {KEY: value} of "KEY=VALUE", the values as in YAML.

    Raises:
        UsageError: no equals sign, or a value that is not YAML.
    """
    changes: dict[str, object] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError("no value", where="--set", found=text, allowed="KEY=VALUE")
        changes[key] = parse_yaml(value, f"--set {key}")
    return changes


def parse_budget(text: str) -> int:
    """Return the bytes of "11GiB", "11.5 GB", "11264MiB".

    Raises:
        UsageError: no positive number, or another unit.
    """
    from pydantic import ByteSize, TypeAdapter, ValidationError

    value = 0
    if re.fullmatch(r"\s*\d+(\.\d+)?\s*[A-Za-z]+B\s*", text):  # a number alone would be bytes
        with contextlib.suppress(ValidationError):
            value = TypeAdapter(ByteSize).validate_python(text)
    if value <= 0:
        raise UsageError(
            "not an amount of memory",
            where="--budget",
            found=repr(text),
            allowed="a number above 0 and a unit as GiB, MiB, KiB, GB, MB",
            hint="for example 11GiB",
        )
    return value
