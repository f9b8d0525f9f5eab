"""Say what changed from one result to another: metrics, classes, images, settings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.comparison.sources import Result


@dataclass(frozen=True)
class Change:
    """Hold a number in both results; None where a side has none.

    Attributes:
        name: of the metric or class, or the image's id.
        before: in the first.
        after: in the second.
        note: what else is worth saying: the class's group and pixels.
    """

    name: str
    before: float | None
    after: float | None
    note: str = ""

    @property
    def gain(self) -> float | None:
        """Return after less before, if both are known."""
        return None if self.before is None or self.after is None else self.after - self.before


@dataclass(frozen=True)
class Comparison:
    """Hold what `compare` found.

    Attributes:
        before: name of the first result.
        after: name of the second.
        metrics: all that either has, in the order of the first.
        classes: those that moved most, the largest gain or loss of IoU first.
        images: those whose pixel accuracy moved most; empty unless both know the same images.
        settings: keys that differ, with both values.
        interval: 95 % interval of the gain in mIoU; None unless both know the same images.
        verdict: one sentence.
    """

    before: str
    after: str
    metrics: list[Change]
    classes: list[Change]
    images: list[Change]
    settings: list[tuple[str, str, str]]
    interval: tuple[float, float] | None
    verdict: str


def compare(before: Result, after: Result, *, limit: int = 15) -> Comparison:
    """Compare two results.

    Args:
        before: the first.
        after: the second.
        limit: classes and images listed at most.
    """
    names = dict.fromkeys([*before.metrics, *after.metrics])
    metrics = [Change(name, before.metrics.get(name), after.metrics.get(name)) for name in names]
    interval = None
    if before.images is not None and after.images is not None:
        interval = after.images.miou_gain_interval(before.images)
    differing = [
        (key, str(before.settings.get(key, "-")), str(after.settings.get(key, "-")))
        for key in dict.fromkeys([*before.settings, *after.settings])
        if str(before.settings.get(key, "-")) != str(after.settings.get(key, "-"))
    ]
    return Comparison(
        before.name,
        after.name,
        metrics,
        _moved_classes(before, after, limit),
        _moved_images(before, after, limit),
        differing,
        interval,
        _verdict(before, after, interval),
    )


def _moved_classes(before: Result, after: Result, limit: int) -> list[Change]:
    changes = []
    for name in dict.fromkeys([*before.classes, *after.classes]):
        sides = [result.classes.get(name) for result in (before, after)]
        known = next(side for side in sides if side is not None)
        ious = [None if side is None else side.iou for side in sides]
        changes.append(Change(name, ious[0], ious[1], f"{known.frequency}, {known.true_pixels:,} pixels"))
    return _largest(changes, limit)


def _moved_images(before: Result, after: Result, limit: int) -> list[Change]:
    if before.images is None or after.images is None:
        return []
    if not np.array_equal(before.images.image_ids, after.images.image_ids):
        return []
    sides = [
        [None if np.isnan(one) else float(one) for one in result.images.image_accuracy()]
        for result in (before, after)
        if result.images is not None
    ]
    rows = zip(before.images.image_ids.tolist(), *sides, strict=True)
    return _largest([Change(str(image_id), one, other) for image_id, one, other in rows], limit)


def _largest(changes: list[Change], limit: int) -> list[Change]:
    moved = [change for change in changes if change.gain]
    return sorted(moved, key=lambda change: (-abs(change.gain or 0.0), change.name))[:limit]


def _verdict(before: Result, after: Result, interval: tuple[float, float] | None) -> str:
    one, other = before.metrics.get("miou"), after.metrics.get("miou")
    if one is None or other is None:
        return "One of the two has no mIoU."
    gain = 100 * (other - one)
    said = f"mIoU {100 * one:.2f} % -> {100 * other:.2f} % ({gain:+.2f})"
    if interval is None:
        return f"{said}; whether that is more than chance is not known without the counts of the same images."
    ends = f"{100 * interval[0]:+.2f} to {100 * interval[1]:+.2f} over other images of the same kind"
    within = "; the sign is not settled by these images" if interval[0] <= 0 <= interval[1] else ""
    return f"{said}; {ends}{within}. What another seed would have given is not in this."
