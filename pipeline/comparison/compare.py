"""Say what changed from one result to another: metrics, classes, images, settings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.comparison.sources import Result
from pipeline.evaluation.seeds import Difference, Spread, difference


@dataclass(frozen=True)
class Change:
    """Hold a number in both results; None where a side has none.

    Attributes:
        name: of the metric or class, or the image's id.
        before: in the first; the mean where several seeds are known.
        after: in the second.
        note: what else is worth saying: the class's group and pixels.
        spreads: standard deviation over the seeds of each; None with one.
        seeds: what the difference is worth over seeds; None where neither has several.
    """

    name: str
    before: float | None
    after: float | None
    note: str = ""
    spreads: tuple[float | None, float | None] = (None, None)
    seeds: Difference | None = None

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
    metrics = [_metric(name, before, after) for name in names]
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


def _metric(name: str, before: Result, after: Result) -> Change:
    groups = [_of_seeds(result, name) for result in (before, after)]
    one, other = (Spread(tuple(group)) if group else None for group in groups)
    return Change(
        name,
        None if one is None else one.mean,
        None if other is None else other.mean,
        spreads=(None if one is None else one.std, None if other is None else other.std),
        seeds=difference(groups[0], groups[1]),
    )


def _of_seeds(result: Result, name: str) -> list[float]:
    """Return the metric of each seed that has it; of the one training where no other is known."""
    metrics = result.seeds.values() or [result.metrics]
    return [one[name] for one in metrics if name in one]


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
    miou = _metric("miou", before, after)
    if miou.before is None or miou.after is None or miou.gain is None:
        return "One of the two has no mIoU."
    means = [
        f"{100 * value:.2f} %" + (f" (mean of {len(result.seeds)} seeds)" if result.seeds else "")
        for value, result in ((miou.before, before), (miou.after, after))
    ]
    said = f"mIoU {means[0]} -> {means[1]} ({100 * miou.gain:+.2f})"
    sentences = [f"{said}; {_over_images(interval, of_first=miou.seeds is not None)}"]
    if miou.seeds is None:
        sentences.append("What another seed would have given is not in this.")
    else:
        ends = f"{100 * miou.seeds.low:+.2f} to {100 * miou.seeds.high:+.2f} over other seeds (95 %)"
        within = "within the spread of seeds" if miou.seeds.within_spread else "more than seeds make"
        sentences.append(f"{ends}: {within}.")
    return " ".join([*sentences, *_machines(before, after)])


def _over_images(interval: tuple[float, float] | None, *, of_first: bool) -> str:
    if interval is None:
        return "whether that is more than chance is not known without the counts of the same images."
    ends = f"{100 * interval[0]:+.2f} to {100 * interval[1]:+.2f} over other images of the same kind"
    within = "; the sign is not settled by these images" if interval[0] <= 0 <= interval[1] else ""
    return f"{ends}{' (first seeds)' if of_first else ''}{within}."


def _machines(before: Result, after: Result) -> list[str]:
    """Say what differs in the machines: it rounds sums otherwise, which may be worth as much as a seed."""
    deterministic = all(one.settings.get("train.deterministic") for one in (before, after))
    differing = [
        f"{key} {before.machine[key]} and {after.machine[key]}"
        for key in before.machine
        if key in after.machine and before.machine[key] != after.machine[key]
        if not (deterministic and key == "threads")
    ]
    if not differing:
        return []
    found = "; ".join(differing)
    return [f"Trained on different machines ({found}): equal settings would differ too, as two seeds do."]
