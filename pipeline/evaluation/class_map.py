"""Lay the class embeddings out in a plane, so that a person can see which classes lie close together."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.data.labels.label_space import LabelSpace
from pipeline.runtime.files import csv_text


def class_map_table(class_embeddings: Tensor, label_space: LabelSpace) -> str:
    """Return CSV with the place of every class: class_id, x, y."""
    places = principal_plane(class_embeddings).tolist()
    rows = [
        [entry.class_id, f"{x:.4g}", f"{y:.4g}"]
        for entry, (x, y) in zip(label_space.classes, places, strict=True)
    ]
    return csv_text(["class_id", "x", "y"], rows)


def principal_plane(vectors: Tensor) -> Tensor:
    """Project onto the two directions of largest variance (PCA), by the D x D covariance.

    Args:
        vectors: (C, D), any floating-point type.

    Returns:
        (C, 2) float64 on the CPU. Of two signs a direction has the one whose largest entry is positive;
        a direction that does not exist, as in D = 1, is 0.
    """
    centered = vectors.detach().to("cpu", torch.float64)
    centered = centered - centered.mean(0)
    _, directions = torch.linalg.eigh(centered.T @ centered)  # ascending
    plane = directions.flip(1)[:, :2]
    largest = plane.gather(0, plane.abs().argmax(0, keepdim=True))
    places = centered @ (plane * largest.sign())
    return torch.nn.functional.pad(places, (0, 2 - places.shape[1]))
