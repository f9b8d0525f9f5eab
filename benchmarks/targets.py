"""Hold what the benchmarks are expected to show, in one table, and say of a figure whether it does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Target:
    """Bound one figure.

    Attributes:
        name: of the figure.
        bound: "at least" or "at most".
        value: the bound.
        unit: what the figure counts.
        device: where it must hold; None for anywhere.
    """

    name: str
    bound: Literal["at least", "at most"]
    value: float
    unit: str
    device: Literal["cpu", "cuda"] | None = None


TARGETS = (
    # benchmarks.loss, at 1,284 classes and D = 16; on a CPU at 65,536 pixels, on a GPU at 16 x 512 x 512
    Target("compiled maps beside tiled", "at least", 2.5, "times faster", "cpu"),
    Target("compiled maps beside the exponentials", "at most", 5.0, "times as long", "cpu"),
    Target("compiled maps beside torch's chunks at 150 classes", "at least", 1.2, "times faster", "cpu"),
    Target("compiled maps beside tiled at 10,000 classes and more", "at least", 1.0, "times faster", "cpu"),
    Target("fused beside the bound", "at most", 3.0, "times as long", "cuda"),
    Target("fused beside the fastest peer", "at least", 5.0, "times faster", "cuda"),
    Target("fused: extra memory beside the inputs", "at most", 1.0, "times as much", "cuda"),
    # benchmarks.training and benchmarks.step, a whole step at 1,284 classes and every pixel
    Target("step of embedding beside dense", "at least", 3.0, "times faster", "cpu"),
    Target("step of softmax beside dense", "at least", 3.0, "times faster", "cpu"),
    Target("step of embedding beside smp", "at least", 3.0, "times faster", "cpu"),
    Target("step of softmax beside smp", "at least", 3.0, "times faster", "cpu"),
    # benchmarks.step, beyond the class table itself with its gradient and momentum
    Target("memory of embedding beside the fewest classes", "at most", 1.01, "times as much"),
    Target("memory of softmax beside the fewest classes", "at most", 1.03, "times as much"),
    # benchmarks.step, the search of a picture
    Target("search of softmax beside tiled", "at least", 2.5, "times faster", "cpu"),
    Target("search of embedding beside tiled", "at least", 2.5, "times faster", "cpu"),
)
_BY_NAME = {target.name: target for target in TARGETS}


def verdict(name: str, found: float, where: str, device: str) -> str:
    """Say in a line whether a figure is within its target, or the figure alone where it has none.

    Args:
        name: of the target.
        found: the figure.
        where: it was measured, such as "1,284 classes, distance".
        device: "cpu" or "cuda".

    Raises:
        KeyError: no target has that name.
    """
    target = _BY_NAME[name]
    if target.device not in (None, device):
        return f"{name}, {where}: {found:,.3g} {target.unit}"
    within = found >= target.value if target.bound == "at least" else found <= target.value
    return (
        f"{'met' if within else 'NOT MET'}: {name}, {where}: {found:,.3g} {target.unit}, "
        f"wanted {target.bound} {target.value:g}"
    )
