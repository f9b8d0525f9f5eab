"""Say in three sentences what was found: the best variant, what its lead is worth, the memory it takes."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.evaluation.seeds import Spread, difference
from pipeline.report.inputs import Variant
from pipeline.report.memory_file import VariantPoint
from pipeline.report.tables import best_variant, number, percent, value_of


def findings(
    variants: Sequence[Variant], spreads: Sequence[Spread | None], memory: Sequence[VariantPoint | None]
) -> list[str]:
    """Return the sentences: the best variant, whether the lead over the next is one, and the memory."""
    sentences = [_best(variants), _lead(variants, spreads), _memory(variants, memory)]
    return [sentence for sentence in sentences if sentence]


def _best(variants: Sequence[Variant]) -> str:
    best = best_variant(variants)
    if best is None and len(variants) > 1:
        return f"{len(variants)} variants were evaluated on val; none has the best mIoU that could be named."
    shown = best or variants[0]
    miou, accuracy = value_of(shown, "miou"), value_of(shown, "pixel_accuracy")
    low, high = value_of(shown, "miou_low"), value_of(shown, "miou_high")
    interval = ""
    if low is not None and high is not None:
        interval = (
            f" (95 % interval over other images of the same kind: {100 * low:.1f} to {100 * high:.1f} %)"
        )
    images = value_of(shown, "images")
    where = f" of {number(images)} val images" if images else ""
    said = f"has the highest mIoU of {len(variants)} variants: " if best else "was evaluated on val: mIoU "
    return (
        f"{shown.name} {said}{percent(miou)}{interval}, with {percent(accuracy)} of the pixels{where} right."
    )


def _lead(variants: Sequence[Variant], spreads: Sequence[Spread | None]) -> str:
    known = [one for one in variants if value_of(one, "miou") is not None]
    once = "Every variant was trained with one seed, and what another one would have given is not known."
    if len(known) < 2 or best_variant(variants) is None:
        return once if len(known) == 1 and not _several(spreads[variants.index(known[0])]) else ""
    first, second = sorted(known, key=lambda one: -(value_of(one, "miou") or 0.0))[:2]
    gap = (value_of(first, "miou") or 0.0) - (value_of(second, "miou") or 0.0)
    said = f"{second.name} follows {100 * gap:.2f} points behind"
    seeds = [(spreads[variants.index(one)] or Spread(())).values for one in (second, first)]
    found = difference(*seeds)
    if found is not None:
        within = "within" if found.within_spread else "beyond"
        ends = f"{100 * found.low:+.2f} to {100 * found.high:+.2f}"
        means = f"the means over seeds are {100 * found.gain:+.2f} apart ({ends})"
        return f"{said}; {means}, {within} what seeds alone change."
    interval = None
    if first.images is not None and second.images is not None:
        interval = first.images.miou_gain_interval(second.images)
    if interval is None:
        return f"{said}. {once}"
    settled = (
        "these images do not settle which is better"
        if interval[0] <= 0 <= interval[1]
        else "these images settle the order"
    )
    range_of = f"{100 * interval[0]:+.2f} to {100 * interval[1]:+.2f} over other images"
    return f"{said} ({range_of}), so that {settled}; each was trained once, and another seed may change it."


def _memory(variants: Sequence[Variant], memory: Sequence[VariantPoint | None]) -> str:
    best = best_variant(variants) or variants[0]
    own = memory[variants.index(best)]
    others = [point for point in memory if point is not None and point is not own]
    if own is None:
        return ""
    kind = "measured" if own.measured_gib is not None else "predicted"
    step = f"A training step of {best.name} with {own.num_classes:,} classes"
    said = f"{step} is {kind} to take {number(own.gib)} GiB"
    if not others:
        return f"{said}."
    most = max(others, key=lambda point: point.gib)
    least = min(others, key=lambda point: point.gib)
    if most.gib <= own.gib:
        return f"{said}, the most of all; {least.variant} takes {number(least.gib)}."
    return f"{said}; {most.variant} takes {number(most.gib)}, {most.gib / own.gib:.1f} times as much."


def _several(spread: Spread | None) -> bool:
    return spread is not None and len(spread.values) > 1
