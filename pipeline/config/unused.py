"""Know which settings a training does not use, given the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_EMBEDDING = ("model.head", ("embedding",))
NEEDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "model.embedding_dim": _EMBEDDING,
    "model.projection": _EMBEDDING,
    "loss.similarity": _EMBEDDING,
    "loss.temperature": _EMBEDDING,
    "loss.min_separation": _EMBEDDING,
    "loss.separation_weight": _EMBEDDING,
    "train.class_embedding_weight_decay": _EMBEDDING,
    "loss.num_negatives": ("loss.name", ("knn", "sampled")),
    "train.poly_power": ("train.schedule", ("poly",)),
}
"""A setting, the one that decides whether it is used, and the values with which it is."""


def unused(values: Mapping[str, Any], settings: Mapping[str, Any]) -> set[str]:
    """Return the dotted keys of `values` that change nothing about a training.

    Args:
        values: of some settings, by dotted key.
        settings: all others, as a tree.
    """
    found = set()
    for key in NEEDS.keys() & values.keys():
        decider, used_with = NEEDS[key]
        section, _, name = decider.partition(".")
        if values.get(decider, settings[section][name]) not in used_with:
            found.add(key)
    return found


def used(values: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that a training uses, of those that `unused` takes."""
    idle = unused(values, settings)
    return {key: value for key, value in values.items() if key not in idle}
