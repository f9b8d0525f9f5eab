"""Describe an exported model: what goes in, what comes out, and where it came from."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

from pipeline.export.formats import Shape
from pipeline.inference.predictor import Predictor


def describe(
    predictor: Predictor,
    arguments: dict[str, Any],
    settings: dict[str, object],
    *,
    confidence: bool,
    shape: Shape,
) -> dict[str, Any]:
    """Return what every exported file says about itself, as plain types for JSON.

    Args:
        predictor: of the checkpoint.
        arguments: of its network.
        settings: of its training.
        confidence: whether it gives confidences.
        shape: what it takes.
    """
    space = predictor.label_space
    backbone = predictor.segmenter.backbone
    outputs = {"class_id": "(batch, height, width) int32: 1 is the first of names, as in pipeline predict"}
    if confidence:
        outputs["confidence"] = "(batch, height, width) float32: softmax probability of the class found"
    height, width = shape.size or ("any", "any")
    return {
        "made_by": f"kiloseg {importlib.metadata.version('kiloseg-pipeline')}",
        **predictor.about,
        "input": {
            "image": "(batch, 3, height, width) uint8 RGB, upright; scaling, mean and std are inside",
            "batch": 1 if shape.one_by_one else "any",
            "height": height,
            "width": width,
            "mean": backbone.mean.flatten().tolist(),
            "std": backbone.std.flatten().tolist(),
        },
        "outputs": outputs,
        "temperature": predictor.search.temperature,
        "similarity": predictor.search.similarity,
        "arguments": arguments,
        "settings": portable(settings),
        "names": list(space.names),
        "label_space": space.to_dict(),
    }


def portable(settings: dict[str, object]) -> dict[str, object]:
    """Return settings without the folders of the machine that trained: of absolute paths the last name."""
    return {
        key: Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
        for key, value in settings.items()
    }
