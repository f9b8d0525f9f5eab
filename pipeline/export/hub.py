"""Write a checkpoint as a folder for a model hub: weights, configuration, labels, and a card."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.checkpoint.format import Checkpoint
from pipeline.export.about import describe, portable
from pipeline.export.export import Exported
from pipeline.export.formats import Shape
from pipeline.export.verify import Run, verify
from pipeline.inference.images import as_tensor
from pipeline.inference.predictor import Predictor
from pipeline.runtime.files import atomic_folder

WEIGHTS, CONFIG, LABELS, CARD = "model.safetensors", "config.json", "labels.txt", "README.md"


def export_hub(
    checkpoint: Checkpoint,
    out: Path,
    *,
    name: str,
    license: str = "unknown",
    metrics: Mapping[str, Any] | None = None,
    about: Mapping[str, object] | None = None,
) -> Exported:
    """Write the folder, which `Predictor.load` takes, and compare its prediction with the product's.

    Args:
        checkpoint: what to export; the state of its training is left out.
        out: the folder, which is replaced as a whole if it was written by this function.
        name: of the model.
        license: of the weights, as the hub names licenses.
        metrics: of the validation set.
        about: where the checkpoint came from.

    Raises:
        UsageError: a folder with other files.
        KilosegError: the disk is full, or the prediction differs.
    """
    bare = dataclasses.replace(checkpoint, settings=portable(checkpoint.settings), optimizer={}, average={})
    predictor = Predictor.from_checkpoint(checkpoint, device="cpu")
    predictor.about = {"step": checkpoint.step, **(about or {})}
    config = {
        "library_name": "kiloseg",
        "model_type": "kiloseg",
        "architectures": ["Segmenter"],
        **describe(
            predictor, checkpoint.arguments.to_dict(), checkpoint.settings, confidence=True, shape=Shape()
        ),
    }
    names = config["names"]
    config["id2label"] = {str(number): label for number, label in enumerate(names, start=1)}
    config["label2id"] = {label: number for number, label in enumerate(names, start=1)}
    with atomic_folder(out, _is_ours) as folder:
        bare.save(folder / WEIGHTS)
        (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        (folder / LABELS).write_text("\n".join(names) + "\n", encoding="utf-8")
        (folder / CARD).write_text(_card(name, license, config, metrics or {}), encoding="utf-8")
        agreement = verify(_run(folder), predictor, Shape().trials())
    return Exported(tuple(out / file for file in (WEIGHTS, CONFIG, LABELS, CARD)), agreement)


def _run(folder: Path) -> Run:
    predictor = Predictor.load(folder, device="cpu")

    def run(images: np.ndarray) -> tuple[np.ndarray, ...]:
        found = [predictor(as_tensor(image.transpose(1, 2, 0))) for image in images]
        return (
            np.stack([one.class_map for one in found]),
            np.stack([one.confidence.astype(np.float32) for one in found]),
        )

    return run


def _is_ours(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / CONFIG).read_text(encoding="utf-8"))["model_type"] == "kiloseg")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _card(name: str, license: str, config: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """Return the card in Markdown, its head in the hub's YAML."""
    arguments, settings = config["arguments"], config["settings"]
    data = f"{settings.get('data.root', 'unknown')} (layout {settings.get('data.layout', 'unknown')})"
    measured = {key: value for key, value in metrics.items() if isinstance(value, int | float)}
    head = [
        "---",
        f"license: {json.dumps(license)}",
        "library_name: kiloseg",
        "pipeline_tag: image-segmentation",
        "tags: [semantic-segmentation, kiloseg, large-vocabulary]",
    ]
    if "miou" in measured:
        head += [
            "model-index:",
            f"- name: {json.dumps(name)}",
            "  results:",
            "  - task: {type: image-segmentation}",
            f"    dataset: {{type: custom, name: {json.dumps(data)}}}",
            "    metrics:",
            *(
                f"    - {{type: {key}, value: {measured[key]}}}"
                for key in ("miou", "pixel_accuracy")
                if key in measured
            ),
        ]
    rows = "\n".join(f"| {key} | {value:.4g} |" for key, value in measured.items())
    kind = "pixel embeddings and nearest classes" if arguments["head"] == "embedding" else "a softmax head"
    return "\n".join(
        [
            *head,
            "---",
            "",
            f"# {name}",
            "",
            f"Semantic segmentation with {len(config['names']):,} classes: {arguments['backbone']}, "
            f"{arguments['decoder']}, {kind}. `{LABELS}` has the classes in the order of their ids, from 1.",
            "",
            "## Use",
            "",
            "```python",
            "from pipeline.inference.predictor import Predictor  # pip install kiloseg-pipeline",
            "",
            'predictor = Predictor.load("path/of/this/folder")',
            'result = predictor("photo.jpg")',
            "result.class_map  # (H, W) uint16 class ids",
            "```",
            "",
            "## Metrics",
            "",
            *(["| metric | value |", "|---|---|", rows] if measured else ["Not evaluated."]),
            "",
            "## Training data",
            "",
            f"{data}, {config['step']:,} steps. The data's terms hold for what was learned from it.",
            "",
            "## License",
            "",
            f"Weights: {license}. The code of kiloseg: Apache-2.0.",
            "",
        ]
    )
