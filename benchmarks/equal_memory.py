"""Compare what dense and flat training learn in the same memory, over all 1,284 classes.

    python -m benchmarks.equal_memory --save
    python -m benchmarks.equal_memory --device cuda --root ROOT --images 600000 --budget 8GiB --budget 44GiB \
        --set model.backbone=resnet50 --set train.crop_size=512 --set train.batch_size=10 --save

Every variant gets the largest crop that is predicted to fit each budget (`equal_memory_plan`), and its own
learning rate: of `RATE_FACTORS` times the recipe's, the one that ends at the best mIoU on the held-out part
of the training set, from seed 0. So it is trained on the same number of images. Then once more for the same
time: that of `softmax` in this budget, in seconds of the processor (on a GPU, of the clock), measured in the
trainings before. mIoU is that of the last weights on val, by which nothing is chosen.

Without --root the data are pictures drawn so that every class occurs (`pipeline.data.tiny.every_class`), and
the recipe is `RECIPE` on top of params.yaml. It imports `pipeline`, whose training it runs.

A finished training is a line of FOLDER/runs.jsonl; the same command goes on where it was stopped. Trainings
come in the order of what they tell: all variants at one seed first, with their rates. `--table` shows what is
there, `--dry-run` what fits each budget.
"""

from __future__ import annotations

import itertools
import json
import shutil
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer

import pipeline.runtime.before_torch  # noqa: F401
from benchmarks.equal_memory_page import Run, draw, tables
from benchmarks.equal_memory_plan import Plan, largest_plan, planned_settings, prediction
from benchmarks.record import describe_machine, save
from benchmarks.runs import bootstrap_once, code_digest, evaluate_split
from pipeline.cli.memory import parse_budget, parse_changes
from pipeline.config.load import load_settings
from pipeline.config.paths import bootstrapped_folder
from pipeline.config.schema import Settings
from pipeline.data.store.manifest import read_manifest
from pipeline.data.tiny.generate import generate_tiny
from pipeline.runtime.device import MIB, choose_device, set_threads
from pipeline.runtime.signals import run_command
from pipeline.tracking.journal import append_events, read_events
from pipeline.tracking.tracker import NoTracker
from pipeline.training.trainer import train

VARIANTS = ("dense", "softmax", "embedding", "essnet")
REFERENCE = "softmax"
"""Whose time the others get."""
BUDGETS = ("12MiB", "48MiB", "224MiB")
IMAGES = 4_800
WORLD: dict[str, Any] = {"num_train": 3_000, "num_val": 300, "image_size": (48, 48), "every_class": True}
RECIPE: dict[str, object] = {
    "data.holdout_fraction": 0.03,
    "train.batch_size": 6,
    "train.crop_size": 48,
    "train.optimizer": "adamw",
    "train.learning_rate": 0.02,
    "train.class_lr_multiplier": 10.0,
    "train.scale_min": 1.0,
    "train.scale_max": 1.0,
    "runtime.num_workers": 0,
}
RATE_FACTORS = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01)
FIRST_FACTORS = (1.0, 0.3, 0.1)
"""The others are tried where the best one has a neighbor that was not."""
SAME_TIME = 0.05  # a training whose time is this close already is not done again


class StepClock(NoTracker):
    """Time steps by the processor's clock, which other programs disturb less; on a GPU by the wall's."""

    def __init__(self, on_gpu: bool) -> None:
        self.clock = time.perf_counter if on_gpu else time.process_time
        self.moments: list[tuple[int, float]] = []

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Keep the moment, not the numbers."""
        if "train/loss" in metrics:
            self.moments.append((step, self.clock()))

    def seconds_per_step(self) -> float:
        """Return the median over the gaps between two logs."""
        return statistics.median(
            (b - a) / (later - sooner) for (sooner, a), (later, b) in pairwise(self.moments)
        )


@dataclass
class Bench:
    """The trainings of one dataset and recipe, made when asked for and kept in a file."""

    params: Path
    overrides: dict[str, object]
    folder: Path
    embedded: bool

    def settings(self, variant: str, seed: int) -> Settings:
        """Return the recipe of a variant."""
        overrides = {**self.overrides, "train.seed": seed}
        settings = load_settings(self.params, variant=variant, overrides=overrides)
        return settings.model_copy(update={"project": self.folder})

    def prepare(self) -> int:
        """Draw the pictures where no dataset is named, bootstrap, and return the number of classes."""
        settings = self.settings(REFERENCE, 0)
        if self.embedded:
            generate_tiny(settings.data.root, **WORLD)
        bootstrap_once(settings)
        return int(read_manifest(bootstrapped_folder(settings))["num_classes"])

    def runs(self) -> list[Run]:
        """Read the finished trainings; those of other code, or that lack something, are done again."""
        names, code = {field.name for field in fields(Run)}, code_digest()
        lines = [line for line in read_events(self.folder / "runs.jsonl") if line.keys() == names]
        return [Run(**line) for line in lines if json.loads(line["key"]).get("code") == code]

    def plans(
        self, budgets: Sequence[int], num_classes: int, variants: Sequence[str] = VARIANTS
    ) -> dict[tuple[str, int], Plan]:
        """Find what fits, by variant and budget, and print it; what does not fit at all is left out."""
        found = {}
        recipes = {variant: self.settings(variant, 0) for variant in variants}
        predictions = {variant: prediction(recipe, num_classes) for variant, recipe in recipes.items()}
        for variant, recipe in recipes.items():
            for budget in budgets:
                plan = largest_plan(recipe, predictions[variant], budget)
                fits = "nothing fits"
                if plan is not None:
                    found[variant, budget] = plan
                    size = f"{plan.crop_size} x {plan.crop_size}"
                    parts = f" in {plan.accumulation_steps} parts" if plan.accumulation_steps > 1 else ""
                    fits = (
                        f"{plan.batch_size} x {size}{parts}, {plan.predicted_bytes / MIB:.1f} MiB predicted"
                    )
                print(f"{budget / MIB:,.0f} MiB, {variant}: {fits}", file=sys.stderr, flush=True)
        return found

    def run(self, protocol: str, budget: int, plan: Plan, settings: Settings, *, number: str) -> Run:
        """Train and evaluate, or find the same training among the finished ones.

        Args:
            protocol: of `Run`.
            budget: in bytes.
            plan: what fits it.
            settings: of the training.
            number: of the training, to be shown.
        """
        train = settings.train
        print(
            f"[{number}] {protocol}: {settings.variant}, {budget / MIB:,.0f} MiB, seed {train.seed}: "
            f"{train.steps:,} steps of {plan.batch_size} x {plan.crop_size}, rate {train.learning_rate:.3g}",
            file=sys.stderr,
            flush=True,
        )
        key = json.dumps({**settings.flat(), "code": code_digest()}, sort_keys=True)
        same = [run for run in self.runs() if run.key == key]
        for run in same:
            if (run.protocol, run.budget_bytes) == (protocol, budget):
                return run
        if same:  # another budget, or another protocol, came to the same settings
            known = {**asdict(same[0]), "protocol": protocol, "budget_bytes": budget}
        else:
            known = self._trained(key, protocol, budget, plan, settings)
        append_events(self.folder / "runs.jsonl", [json.dumps(known)])
        return Run(**known)

    def _trained(
        self, key: str, protocol: str, budget: int, plan: Plan, settings: Settings
    ) -> dict[str, Any]:
        clock = StepClock(choose_device(settings.runtime.device).type == "cuda")
        train_settings = settings.train
        name = f"{settings.variant}-{budget}-{train_settings.seed}-{train_settings.steps}"
        checkpoints = self.folder / "checkpoints" / f"{name}-{train_settings.learning_rate:.4g}"
        result = train(settings, clock, folder=checkpoints)
        metrics = evaluate_split(settings, result.checkpoint, "val")
        shutil.rmtree(checkpoints)
        _, held_out, _ = result.state.validation_curve[-1]
        return {
            "key": key,
            "protocol": protocol,
            "variant": settings.variant,
            "budget_bytes": budget,
            "seed": train_settings.seed,
            **asdict(plan),
            "learning_rate": train_settings.learning_rate,
            "steps": train_settings.steps,
            "seconds_per_step": clock.seconds_per_step(),
            "held_out_miou": held_out or 0.0,
            "miou": metrics.miou,
            "pixel_accuracy": metrics.pixel_accuracy,
        }


def same_time_steps(own: Run, reference: Run) -> int:
    """Return the steps that take as long as the reference's training; its own number where that is close."""
    ratio = reference.steps * reference.seconds_per_step / (own.steps * own.seconds_per_step)
    return own.steps if abs(ratio - 1) <= SAME_TIME else max(2, round(own.steps * ratio))


def all_runs(
    bench: Bench,
    plans: Mapping[tuple[str, int], Plan],
    images: int,
    seeds: int,
    *,
    own_rate: bool,
    equal_time: bool,
) -> Iterator[Run]:
    """Yield the trainings in the order of what they tell: the same images, all seeds; then the same time.

    With `own_rate` those that look for the rate come before the first seed's.
    """
    least = len(plans) * (seeds * (1 + equal_time) + (len(FIRST_FACTORS) if own_rate else 0))
    numbers = (f"{number} of {least} or more" for number in itertools.count(1))
    rates: dict[tuple[str, int], float] = {}
    first: dict[tuple[str, int], Run] = {}

    def made(protocol: str, variant: str, budget: int, seed: int, factor: float, **length: int) -> Run:
        plan = plans[variant, budget]
        settings = planned_settings(bench.settings(variant, seed), plan, rate_factor=factor, **length)
        return bench.run(protocol, budget, plan, settings, number=next(numbers))

    for seed in range(seeds):
        for variant, budget in plans:
            if seed == 0:
                tried: dict[float, Run] = {}
                while own_rate and (factor := next_factor(tried)) is not None:
                    tried[factor] = made("rates", variant, budget, 0, factor, images=images)
                    yield tried[factor]
                rates[variant, budget] = best_factor(tried)
            run = made("images", variant, budget, seed, rates[variant, budget], images=images)
            first.setdefault((variant, budget), run)
            yield run
    for seed in range(seeds if equal_time else 0):
        for variant, budget in plans:
            if (reference := first.get((REFERENCE, budget))) is None:
                continue
            steps = same_time_steps(first[variant, budget], reference)  # by seed 0's clock, for all seeds
            yield made("time", variant, budget, seed, rates[variant, budget], steps=steps)


def next_factor(tried: Mapping[float, Run]) -> float | None:
    """Return the factor of the rate to try next; None when both neighbors of the best one are worse."""
    for factor in FIRST_FACTORS:
        if factor not in tried:
            return factor
    place = RATE_FACTORS.index(best_factor(tried))
    neighbors = RATE_FACTORS[max(0, place - 1) : place + 2]
    return next((factor for factor in neighbors if factor not in tried), None)


def best_factor(tried: Mapping[float, Run]) -> float:
    """Return the factor of the rate that ended best on the held-out part; 1 where none was tried."""
    return max(tried, key=lambda factor: tried[factor].held_out_miou, default=1.0)


def main(
    budget: Annotated[list[str] | None, typer.Option(help="Memory of a step, as 48MiB; repeat it.")] = None,
    variant: Annotated[list[str] | None, typer.Option(help="Default: all; equal time needs softmax.")] = None,
    images: Annotated[int, typer.Option(min=1, help="Seen in each training.")] = IMAGES,
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    own_rate: Annotated[bool, typer.Option(help="Look for each variant's learning rate.")] = True,
    equal_time: Annotated[bool, typer.Option(help="Train again at the time of softmax.")] = True,
    root: Annotated[Path | None, typer.Option(help="Dataset; default: drawn, every class in it.")] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE, as train.crop_size=512; repeat it for more.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    params: Annotated[Path, typer.Option(help="The settings file.")] = Path("params.yaml"),
    folder: Annotated[Path, typer.Option(help="Where data and runs are kept.")] = Path("data/equal_memory"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what fits, and train nothing.")] = False,
    table_only: Annotated[bool, typer.Option("--table", help="Show what has been trained so far.")] = False,
    keep: Annotated[
        bool, typer.Option("--save", help="Write table and picture to benchmarks/results/.")
    ] = False,
) -> None:
    """Train every variant in every budget with every seed; print a table, save it with a picture."""
    folder = (folder / (root.resolve().name if root else "drawn")).resolve()
    data = root.resolve() if root else folder / "data" / "drawn"
    overrides: dict[str, object] = {} if root else dict(RECIPE)
    overrides |= parse_changes(change or []) | {"data.root": str(data), "runtime.device": device}
    bench = Bench(params, overrides, folder, embedded=root is None)
    set_threads(bench.settings(REFERENCE, 0).runtime.threads)
    if table_only:
        runs = bench.runs()
    else:
        num_classes = bench.prepare()
        budgets = [parse_budget(text) for text in budget or BUDGETS]
        plans = bench.plans(budgets, num_classes, variant or VARIANTS)
        if dry_run:
            return
        runs = list(all_runs(bench, plans, images, seeds, own_rate=own_rate, equal_time=equal_time))
    text = [describe_machine(device), _recipe(bench, data.name, images), *tables(runs)]
    print("\n\n".join(text))
    if keep:
        written = save("equal_memory", device, text)
        draw(runs, written.with_suffix(".svg"))
        print(f"\nsaved {written} and the picture beside it")


def _recipe(bench: Bench, name: str, images: int) -> str:
    settings = bench.settings(REFERENCE, 0)
    train, model = settings.train, settings.model
    dim = bench.settings("embedding", 0).model.embedding_dim
    return (
        f"data {name}; {model.backbone}, {model.decoder} {model.decoder_channels}, embedding dim "
        f"{dim}; {images:,} images a training; wanted: {train.images_per_step} crops of "
        f"{train.crop_size} x {train.crop_size}; {train.optimizer}, rate {train.learning_rate}, of "
        f"which each variant takes what is best for it; that of class embeddings or classifier is "
        f"{train.class_lr_multiplier:g} times the rest's"
    )


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    sys.exit(run_command(app))
