"""Measure what approximating the softmax costs and saves: quality and time, at equal steps and equal time.

    python -m benchmarks.approximation --steps 150 --save
    python -m benchmarks.approximation --root PATH --weights FILE --backbone tf_efficientnet_lite0 --save

Each variant is trained by `pipeline.training.trainer` with the settings of params.yaml. Its last weights are
evaluated on val and on the images it learned from (validated once, at the end: nothing is chosen). Seeds
are the same for all variants, so data order and initial weights are too.

Time a step comes first, from short trainings in turns: the median gap between two steps, data loading
included. What is trained after that is compared by quality alone, so other work beside it changes no figure.
`--times-only` stops there.

Equal time: the learning rate falls to zero over the steps, so a curve read half-way would be unfair to
whoever is slower. Instead each variant is trained again, with the steps that take it as long as exact takes.

Finished timings and cells are lines of FOLDER/times.jsonl and cells.jsonl. The same command goes on where it
was stopped.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import typer
import yaml

from benchmarks.record import describe_machine, save
from benchmarks.runs import bootstrap_once, evaluate_split
from pipeline.config.load import load_settings
from pipeline.config.schema import Settings
from pipeline.runtime.device import choose_device
from pipeline.runtime.errors import UsageError
from pipeline.runtime.signals import run_command
from pipeline.tracking.journal import append_events, read_events
from pipeline.tracking.tracker import NoTracker
from pipeline.training.trainer import train

REFERENCE = "exact"
VARIANTS: dict[str, dict[str, object]] = {
    REFERENCE: {"loss.name": "exact"},
    **{f"knn K={k}": {"loss.name": "knn", "loss.num_negatives": k} for k in (1, 3, 7, 31)},
    **{f"sampled K={k}": {"loss.name": "sampled", "loss.num_negatives": k} for k in (64, 256)},
    "softmax": {"model.head": "softmax"},
}
SAME_TIME = 0.03  # variants whose time is this close to exact's are not trained again
ROUNDS, TIMED_STEPS, UNTIMED_STEPS = 3, 24, 4  # of the short trainings that are timed


@dataclass(frozen=True)
class Cell:
    """One training and its result on val."""

    key: str
    variant: str
    seed: int
    steps: int
    miou: float
    pixel_accuracy: float
    train_miou: float
    train_pixel_accuracy: float


class StepClock(NoTracker):
    """Note when each step was logged (trainings of fewer than 400 steps log every one)."""

    def __init__(self) -> None:
        self.moments: list[float] = []

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Keep the moment, not the numbers."""
        if "train/loss" in metrics:
            self.moments.append(time.perf_counter())

    def seconds_per_step(self) -> float:
        """Return the median gap between two steps, the first few left out."""
        moments = self.moments[UNTIMED_STEPS:]
        return statistics.median(later - earlier for earlier, later in pairwise(moments))


@dataclass
class Bench:
    """The cells of one dataset and set of settings, made when asked for and kept in a file."""

    params: Path
    overrides: dict[str, object]
    folder: Path

    def settings(self, variant: str, seed: int, steps: int) -> Settings:
        """Return params.yaml with the overrides, the variant's, and one validation, at the end."""
        every = {"train.steps": steps, "train.seed": seed, "train.validate_every": steps}
        overrides = {**self.overrides, **VARIANTS[variant], **every}
        return load_settings(self.params, overrides=overrides).model_copy(update={"project": self.folder})

    def prepare(self) -> None:
        """Draw the embedded dataset where no other is named, and bootstrap."""
        bootstrap_once(self.settings(REFERENCE, 0, 1))

    def times(self, variants: list[str]) -> dict[str, list[float]]:
        """Seconds a step of each variant, once a round; the variants take turns."""
        times: dict[str, list[float]] = {variant: [] for variant in variants}
        for turn in range(ROUNDS):
            for variant in variants:
                settings = self.settings(variant, turn, TIMED_STEPS)
                key = json.dumps(settings.flat(), sort_keys=True)
                known = [
                    line["seconds"] for line in read_events(self.folder / "times.jsonl") if line["key"] == key
                ]
                if not known:
                    clock = StepClock()
                    checkpoints = self.folder / "checkpoints" / "timed"
                    print(f"{variant}, timing {turn + 1} of {ROUNDS}", file=sys.stderr, flush=True)
                    train(settings, clock, folder=checkpoints)
                    shutil.rmtree(checkpoints)
                    known = [clock.seconds_per_step()]
                    line = {"key": key, "variant": variant, "seconds": known[0]}
                    append_events(self.folder / "times.jsonl", [json.dumps(line)])
                times[variant].append(known[0])
        return times

    def cell(self, variant: str, seed: int, steps: int) -> Cell:
        """Return the cell from the file, or train it now."""
        settings = self.settings(variant, seed, steps)
        key = json.dumps(settings.flat(), sort_keys=True)
        for line in read_events(self.folder / "cells.jsonl"):
            if line["key"] == key:
                return Cell(**line)
        checkpoints = self.folder / "checkpoints" / f"{variant}-{seed}-{steps}".replace(" ", "-")
        print(f"{variant}, seed {seed}, {steps} steps", file=sys.stderr, flush=True)
        result = train(settings, NoTracker(), folder=checkpoints)
        val, seen = (evaluate_split(settings, result.checkpoint, split) for split in ("val", "train"))
        cell = Cell(
            key=key,
            variant=variant,
            seed=seed,
            steps=steps,
            miou=val.miou,
            pixel_accuracy=val.pixel_accuracy,
            train_miou=seen.miou,
            train_pixel_accuracy=seen.pixel_accuracy,
        )
        append_events(self.folder / "cells.jsonl", [json.dumps(asdict(cell))])
        shutil.rmtree(checkpoints)
        return cell


def table(rows: list[list[Cell]], times: Mapping[str, list[float]]) -> str:
    """One line a variant: mean and standard deviation over the seeds."""
    titles = ("steps", "ms/step", "seconds", "mIoU %", "pixel acc. %", "seen mIoU %", "seen acc. %")
    lines = [f"{'variant':15}{titles[0]:>7}" + "".join(f"{title:>16}" for title in titles[1:])]
    for cells in rows:
        first, seconds = cells[0], times[cells[0].variant]
        columns = (
            [1000 * value for value in seconds],
            [first.steps * value for value in seconds],
            [100 * cell.miou for cell in cells],
            [100 * cell.pixel_accuracy for cell in cells],
            [100 * cell.train_miou for cell in cells],
            [100 * cell.train_pixel_accuracy for cell in cells],
        )
        spreads = "".join(f"{_spread(column):>16}" for column in columns)
        lines.append(f"{first.variant:15}{first.steps:>7}{spreads}")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


def equal_time_steps(steps: int, reference: list[float], seconds: list[float]) -> int:
    """Return the steps that take the variant as long as `steps` take the reference, by medians."""
    ratio = statistics.median(reference) / statistics.median(seconds)
    return steps if abs(ratio - 1) <= SAME_TIME else max(1, round(steps * ratio))


def main(
    root: Annotated[Path | None, typer.Option(help="Dataset; default: the embedded one.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Safetensors file of the backbone's weights.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Name of a timm model.")] = None,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE, as loss.temperature=0.1; repeat it for more."),
    ] = None,
    steps: Annotated[int, typer.Option(min=1)] = 150,
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    only: Annotated[list[str] | None, typer.Option(help="Variants besides exact; default: all.")] = None,
    equal_time: Annotated[bool, typer.Option(help="Train again at exact's time.")] = True,
    times_only: Annotated[bool, typer.Option("--times-only", help="Time the steps and stop.")] = False,
    params: Annotated[Path, typer.Option(help="The settings file.")] = Path("params.yaml"),
    folder: Annotated[
        Path | None, typer.Option(help="Where data and cells are kept; default: data/approximation/DATASET.")
    ] = None,
    keep: Annotated[bool, typer.Option("--save", help="Write the tables to benchmarks/results/.")] = False,
) -> None:
    """Train every variant with every seed and compare."""
    overrides: dict[str, object] = {}
    for text in change or []:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError("no value", where="--set", found=text, allowed="KEY=VALUE")
        overrides[key] = yaml.safe_load(value)
    given = {"data.root": root, "model.weights": weights}
    overrides |= {key: str(value.resolve()) for key, value in given.items() if value is not None}
    overrides |= {} if backbone is None else {"model.backbone": backbone}
    unknown = set(only or []) - set(VARIANTS)
    if unknown:
        raise UsageError("unknown variant", found=", ".join(unknown), allowed=", ".join(VARIANTS))
    name = root.resolve().name if root else "tiny"
    bench = Bench(params, overrides, (folder or Path("data/approximation") / name).resolve())
    bench.prepare()

    chosen = [variant for variant in VARIANTS if not only or variant in (REFERENCE, *only)]
    times = bench.times(chosen)
    if times_only:
        for variant, seconds in times.items():
            print(f"{variant:15}{_spread([1000 * value for value in seconds]):>16} ms/step")
        return
    at_equal_steps = [[bench.cell(variant, seed, steps) for seed in range(seeds)] for variant in chosen]
    title = f"{name}, {seeds} seeds (mean ± standard deviation; seen: on the images it learnt from)"
    sections = [f"{title}, equal steps\n{table(at_equal_steps, times)}"]
    if equal_time:
        again = []
        for variant in chosen:
            count = equal_time_steps(steps, times[REFERENCE], times[variant])
            again.append([bench.cell(variant, seed, count) for seed in range(seeds)])
        sections.append(f"{title}, equal time\n{table(again, times)}")
    device = choose_device(bench.settings(REFERENCE, 0, steps).runtime.device).type
    paths = ("data.root", "model.weights")  # of this machine
    changed = " ".join(f"{key}={value}" for key, value in overrides.items() if key not in paths)
    sections.insert(0, f"{describe_machine(device)}\nsteps {steps}, changed settings: {changed or 'none'}")
    print("\n\n".join(sections))
    if keep:
        print(f"\nsaved {save('approximation-' + name, device, sections)}")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    sys.exit(run_command(app))
