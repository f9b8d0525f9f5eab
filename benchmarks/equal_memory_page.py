"""Show the trainings of `benchmarks.equal_memory`: a table for each protocol, and a picture."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

MIB = 2**20
BASELINE = "dense"
WORTH_DIVIDING_BY = 0.05  # mIoU in per cent: a factor over less means nothing
TITLES = {"images": "same number of images", "time": "same time"}
_STYLES = {"dense": ("#b3261e", "o"), "softmax": ("#1a5fb4", "s"), "embedding": ("#2e7d32", "^")}
_OTHER = ("#8a6100", "D")


@dataclass(frozen=True)
class Run:
    """One finished training.

    Attributes:
        key: its settings.
        protocol: images or time, whichever is equal; rates where the learning rate was looked for.
        variant: of params.yaml.
        budget_bytes: of a step.
        seed: of weights, order and crops.
        batch_size, accumulation_steps, crop_size, predicted_bytes: what fitted.
        learning_rate, steps: of the training.
        seconds_per_step: of the processor; on a GPU of the clock.
        held_out_miou: on the held-out part of the training set, by which the rate is chosen.
        miou, pixel_accuracy: on val.
    """

    key: str
    protocol: str
    variant: str
    budget_bytes: int
    seed: int
    batch_size: int
    accumulation_steps: int
    crop_size: int
    predicted_bytes: int
    learning_rate: float
    steps: int
    seconds_per_step: float
    held_out_miou: float
    miou: float
    pixel_accuracy: float


Groups = dict[tuple[int, str], list[Run]]


def _grouped(runs: Sequence[Run], protocol: str) -> Groups:
    """Group the trainings of a protocol by budget and variant, in the order of the budgets."""
    groups: Groups = {}
    for run in sorted(runs, key=lambda run: run.budget_bytes):
        if run.protocol == protocol:
            groups.setdefault((run.budget_bytes, run.variant), []).append(run)
    return groups


def tables(runs: Sequence[Run]) -> list[str]:
    """Return the rates that were tried, and a table for each protocol: mean, spread, and times `dense`."""
    found = [
        f"Equal memory, {title}\n{_table(groups)}"
        for protocol, title in TITLES.items()
        if (groups := _grouped(runs, protocol))
    ]
    tried = _grouped(runs, "rates")
    rates = f"Learning rates: mIoU % of each on the held-out part, seed 0\n{_rates(tried)}"
    return [rates, *found] if tried else found


def _rates(groups: Groups) -> str:
    lines = [f"{'budget MiB':>10}  variant"]
    for (budget, variant), rows in groups.items():
        cells = "".join(f"{f'{row.learning_rate:.3g}:':>10}{100 * row.held_out_miou:>6.2f}" for row in rows)
        lines.append(f"{budget / MIB:>10,.0f}  {variant:10}{cells}")
    return "\n".join(lines)


def _table(groups: Groups) -> str:
    lines = [
        f"{'budget MiB':>10}  {'variant':10}{'crops':>9}{'at a time':>11}{'rate':>8}{'steps':>8}"
        f"{'predicted MiB':>15}{'s in all':>10}{'seeds':>7}{'mIoU %':>15}{'pixel acc. %':>15}{'x dense':>9}"
    ]
    for (budget, variant), rows in groups.items():
        first, mious = rows[0], [100 * row.miou for row in rows]
        seconds = statistics.mean(row.steps * row.seconds_per_step for row in rows)
        crops = f"{first.batch_size} x {first.crop_size}"
        at_a_time = -(-first.batch_size // first.accumulation_steps)
        lines.append(
            f"{budget / MIB:>10,.0f}  {variant:10}{crops:>9}{at_a_time:>11}{first.learning_rate:>8.3g}"
            f"{first.steps:>8,}{first.predicted_bytes / MIB:>15.1f}{seconds:>10.0f}{len(rows):>7}"
            f"{_spread(mious):>15}{_spread([100 * row.pixel_accuracy for row in rows]):>15}"
            f"{_factor(mious, groups.get((budget, BASELINE))):>9}"
        )
    return "\n".join(lines)


def _factor(mious: Sequence[float], baseline: Sequence[Run] | None) -> str:
    """Return the factor over a baseline that learned anything."""
    reached = 0.0 if baseline is None else _mean_percent(baseline)
    return f"{statistics.mean(mious) / reached:.2f}" if reached >= WORTH_DIVIDING_BY else "-"


def _mean_percent(rows: Sequence[Run]) -> float:
    return statistics.mean(100 * row.miou for row in rows)


def _spread(values: Sequence[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


def draw(runs: Sequence[Run], path: Path) -> None:
    """Draw mIoU against the budget, one line a variant, from the least to the greatest of the seeds."""
    shown = [protocol for protocol in TITLES if _grouped(runs, protocol)]
    with rc_context({"svg.hashsalt": "equal_memory", "font.size": 10}):
        figure = Figure(figsize=(4.6 * len(shown), 3.4), layout="constrained")
        panels = figure.subplots(1, len(shown), squeeze=False, sharey=True)[0]
        for axes, protocol in zip(panels, shown, strict=True):
            groups = _grouped(runs, protocol)
            for variant in dict.fromkeys(variant for _, variant in groups):
                rows = [(budget, of) for (budget, name), of in groups.items() if name == variant]
                color, marker = _STYLES.get(variant, _OTHER)
                means = [_mean_percent(of) for _, of in rows]
                least = [100 * min(row.miou for row in of) for _, of in rows]
                most = [100 * max(row.miou for row in of) for _, of in rows]
                ends = np.maximum(0.0, [np.subtract(means, least), np.subtract(most, means)])
                axes.errorbar(
                    [budget / MIB for budget, _ in rows],
                    means,
                    yerr=ends,
                    color=color,
                    marker=marker,
                    capsize=3,
                    label=variant,
                )
            budgets = sorted({budget for budget, _ in groups})
            axes.set_xscale("log")
            axes.set_xticks([budget / MIB for budget in budgets])
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_ylim(bottom=0)
            axes.set_title(TITLES[protocol])
            axes.set_xlabel("memory of a training step, MiB")
            axes.grid(alpha=0.3)
        panels[0].set_ylabel("mIoU, % of all classes")
        panels[0].legend(frameon=False)
        figure.savefig(path, metadata={"Date": None})
