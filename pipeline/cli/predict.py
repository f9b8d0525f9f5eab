"""`pipeline predict`: class maps of pictures with a trained checkpoint."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from pipeline.inference.inputs import Input
    from pipeline.inference.predict_files import Job, Outcome

Format = Literal["files", "cityscapes"]


def predict(
    paths: Annotated[list[str], typer.Argument(help="Files, folders, globs, or - for a list on stdin.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the outputs.")],
    checkpoint: Annotated[
        str | None,
        typer.Option(help="File, folder, or models:/NAME@ALIAS; by default the best variant of results/."),
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help='Names or class ids to search, as in "dog,cat"; the rest is left out.')
    ] = None,
    min_confidence: Annotated[
        float, typer.Option(help="Pixels of a smaller probability are unlabeled.", min=0, max=1)
    ] = 0.0,
    window: Annotated[
        int | None, typer.Option(help="Side of sliding windows, in pixels; by default the whole picture.")
    ] = None,
    overlap: Annotated[float, typer.Option(help="Share of a window that its neighbor covers.")] = 0.25,
    scales: Annotated[str, typer.Option(help='Sizes to average over, as in "0.5,1,1.5".')] = "1",
    flip: Annotated[bool, typer.Option("--flip", help="Average over the mirrored picture too.")] = False,
    batch_size: Annotated[int, typer.Option(help="Windows or pictures computed at once.", min=1)] = 1,
    rle: Annotated[bool, typer.Option("--rle", help="Write COCO's run-length masks too.")] = False,
    format: Annotated[
        Format, typer.Option(help="files, or cityscapes: what that benchmark's server takes, nothing else.")
    ] = "files",
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Go on: leave out what is there already.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    address: Annotated[
        str | None, typer.Option(help="Predict on a Ray cluster; OUT and PATHs are on a shared disk.")
    ] = None,
    params: Annotated[Path, typer.Option("--params", help="The settings file of the project.")] = Path(
        "params.yaml"
    ),
) -> None:
    """Write for each picture a 16-bit class map, an overlay and a list of its classes into OUT.

    With --format cityscapes it is one 8-bit PNG of label ids for each picture instead. All are in the
    picture's upright frame: EXIF orientation is applied first.
    """
    from pipeline.inference.inputs import find_inputs

    pictures = find_inputs(paths, sys.stdin, out)  # before torch is imported: a wrong path is told at once

    from pipeline.cli.store import use_project_store
    from pipeline.inference.locate import best_variant
    from pipeline.inference.predict_files import Job, predict_files
    from pipeline.inference.predictor import Predictor
    from pipeline.inference.submission import CityscapesSubmission
    from pipeline.inference.windows import Views
    from pipeline.runtime.device import set_threads

    project = params.resolve().parent
    use_project_store(project)
    views = Views(window=window, overlap=overlap, scales=_numbers(scales), flip=flip, batch_size=batch_size)
    source = checkpoint or str(best_variant(project))
    options: dict[str, Any] = {
        "device": device,
        "classes": None if classes is None else classes.split(","),
        "min_confidence": min_confidence,
        "views": views,
    }
    set_threads("auto")
    # on a cluster too, so that a mistake is told before anything starts; its machines may have GPUs
    predictor = Predictor.load(source, **{**options, "device": "cpu" if address else device})
    submission = None
    if format == "cityscapes":
        submission = CityscapesSubmission.of(predictor.label_space)
        submission.check(pictures)
    job = Job(out, rle, predictor.record(), skip_existing, submission)
    if address is None:
        outcome = predict_files(predictor, pictures, job)
    else:
        outcome = _on_cluster(address, source, options, pictures, job)
    left_out = f", {outcome.skipped} were there" if outcome.skipped else ""
    typer.echo(f"{out}: {outcome.written} predicted with {source}{left_out}")
    outcome.check()


def _on_cluster(
    address: str, source: str, options: dict[str, Any], pictures: list[Input], job: Job
) -> Outcome:
    from pipeline.inference.cluster import predict_on_cluster
    from pipeline.tuning.cluster import connect

    machines = connect(address)
    gpus = int(sum(machine.gpus for machine in machines))
    if options["device"] == "auto":
        options = {**options, "device": "cuda" if gpus else "cpu"}
    workers = gpus if options["device"].startswith("cuda") else sum(machine.cpus for machine in machines)
    try:
        return predict_on_cluster(source, options, pictures, job, workers=max(1, workers))
    finally:
        import ray

        ray.shutdown()


def _numbers(text: str) -> tuple[float, ...]:
    from pipeline.runtime.errors import UsageError

    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError as error:
        raise UsageError(
            "not a list of numbers", where="--scales", found=text, allowed='for example "0.5,1,1.5"'
        ) from error
