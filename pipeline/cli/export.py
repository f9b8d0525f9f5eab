"""`pipeline export`: a trained model for other programs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pipeline.cli.store import names_a_checkpoint, use_project_store

Format = Literal["onnx", "torch", "openvino", "hub"]


def export(
    model: Annotated[str, typer.Argument(help="A trained variant, a checkpoint, or models:/NAME@ALIAS.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the files.")],
    format: Annotated[Format, typer.Option(help="onnx, torch (.pt2), openvino, or hub: a folder to share.")],
    confidence: Annotated[
        bool, typer.Option("--confidence", help="Put out the probability of each pixel's class too.")
    ] = False,
    size: Annotated[
        str | None, typer.Option(help="Fix HEIGHTxWIDTH, as in 512x512; openvino needs it.")
    ] = None,
    license: Annotated[
        str, typer.Option(help="License of the weights, for the card of --format hub.")
    ] = "unknown",
    params: Annotated[Path, typer.Option("--params", help="The settings file of the project.")] = Path(
        "params.yaml"
    ),
) -> None:
    """Write a model that takes bytes of RGB and gives class ids, and verify it against pipeline predict."""
    sides = _size(size)
    use_project_store(params.resolve().parent)
    source = _source(model, params.resolve().parent)

    from pipeline.checkpoint.format import load_checkpoint
    from pipeline.inference.locate import located
    from pipeline.runtime.device import set_threads
    from pipeline.runtime.files import file_digest

    with located(source) as path:
        checkpoint = load_checkpoint(path)
        about = {"checkpoint": model, "sha256": file_digest(path)}
    set_threads("auto")
    if format == "hub":
        from pipeline.export.hub import export_hub

        metrics = _metrics(params.resolve().parent / "results" / model / "metrics.json")
        done = export_hub(checkpoint, out, name=model, license=license, metrics=metrics, about=about)
    else:
        from pipeline.export.export import export_checkpoint

        done = export_checkpoint(
            checkpoint, out, format=format, confidence=confidence, size=sides, about=about
        )
    written = ", ".join(f"{path} ({path.stat().st_size / 1e6:.1f} MB)" for path in done.files)
    typer.echo(f"{written}\nverified against the product's prediction: {done.agreement}")


def _source(model: str, project: Path) -> str:
    """Return the checkpoint of a variant, or the source as it was named."""
    from pipeline.runtime.errors import DataError

    best = project / "checkpoints" / model / "best.safetensors"
    if best.is_file():
        return str(best)
    if names_a_checkpoint(model):
        return model
    trained = sorted(path.parent.name for path in (project / "checkpoints").glob("*/best.safetensors"))
    raise DataError(
        "no trained variant or checkpoint of this name",
        where=model,
        allowed=", ".join(trained) or "a file, a folder, or models:/NAME@ALIAS",
        hint=f"train it first (dvc repro train@{model}), or name a checkpoint",
    )


def _size(text: str | None) -> tuple[int, int] | None:
    from pipeline.runtime.errors import UsageError

    if text is None:
        return None
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if match is None:
        raise UsageError("not a size", where="--size", found=text, allowed="HEIGHTxWIDTH, as in 512x512")
    return int(match[1]), int(match[2])


def _metrics(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
