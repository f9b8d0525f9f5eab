"""Run `pipeline tune`: sweep settings, show the result, keep the best values."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.runtime.errors import KilosegError, UsageError

if TYPE_CHECKING:
    from pipeline.config.schema import Settings
    from pipeline.tuning.space import Space
    from pipeline.tuning.sweep import Sweep, SweepPlan

app = typer.Typer(
    help="Sweep settings with Ray Tune; then `best` shows the result and `apply` keeps it.",
    invoke_without_command=True,
    add_completion=False,
)

PARAMS = Path("params.yaml")
Params = Annotated[Path, typer.Option("--params", help="The settings file.", show_default=True)]
Name = Annotated[str | None, typer.Option("--name", help="A sweep's name; default: the latest.")]
Trials = Annotated[int | None, typer.Option(help="Instead of tune.trials.", min=1)]
TimeBudget = Annotated[
    str | None, typer.Option(help="Stop after this long, as 90s, 30m or 2h; what runs can be resumed.")
]
MaxConcurrent = Annotated[
    int | None, typer.Option(help="Trials at once, instead of tune.max_concurrent.", min=1)
]
GpusPerTrial = Annotated[
    float | None, typer.Option(help="Instead of tune.gpus_per_trial; 0.5 puts two on a GPU.", min=0)
]
Address = Annotated[
    str | None, typer.Option(help="Join this Ray cluster (auto, or HOST:PORT); default: this machine.")
]
NewName = Annotated[str | None, typer.Option("--name", help="Of the sweep; default: date and time.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the sweep --name, or the latest.")]
Extend = Annotated[int, typer.Option(help="Go on with it and add so many trials.", min=0)]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, say what would run.")]


@app.callback()
def tune(
    context: typer.Context,
    params: Params = PARAMS,
    trials: Trials = None,
    time_budget: TimeBudget = None,
    max_concurrent: MaxConcurrent = None,
    gpus_per_trial: GpusPerTrial = None,
    address: Address = None,
    name: NewName = None,
    resume: Resume = False,
    extend: Extend = 0,
    dry_run: DryRun = False,
) -> None:
    """Sweep the settings of the tune section over the bootstrapped data."""
    if context.invoked_subcommand is not None:
        return
    seconds = None if time_budget is None else parse_seconds(time_budget)
    if (resume or extend) and trials is not None:
        raise UsageError("a sweep keeps its trials", where="--trials", hint="add to them with --extend N")
    settings = _settings_of_variant(params, gpus_per_trial)

    from pipeline.tuning.plan import continue_plan, new_plan

    if resume or extend:
        plan, space = continue_plan(_sweep(settings, name), settings.project, extend=extend)
    else:
        plan, space = new_plan(settings, name=name, trials=trials)
    _describe(plan, space)
    if dry_run:
        return

    from pipeline.tuning.runner import run_sweep

    resume_hint = "to go on: " + _resume_command(plan.name, params, address, max_concurrent, gpus_per_trial)
    try:
        sweep = run_sweep(
            plan,
            space,
            address=address,
            max_concurrent=max_concurrent,
            gpus_per_trial=gpus_per_trial,
            time_budget=seconds,
        )
    except KeyboardInterrupt:
        print(f"\nstopped; {resume_hint}", file=sys.stderr, flush=True)
        raise
    _show(sweep)
    _report_end(sweep, plan, resume_hint)


def _settings_of_variant(params: Path, gpus_per_trial: float | None) -> Settings:
    """Load the settings of the variant to sweep, with the option's GPUs in its tune section."""
    from pipeline.config.load import load_settings, with_overrides

    settings = load_settings(params, variant=load_settings(params).tune.variant)
    if gpus_per_trial is None:
        return settings
    section = settings.tune.model_copy(update={"gpus_per_trial": gpus_per_trial})
    return with_overrides(settings.model_copy(update={"tune": section}), {})


def _resume_command(
    name: str, params: Path, address: str | None, max_concurrent: int | None, gpus_per_trial: float | None
) -> str:
    """Return the command that resumes the sweep with the options given now."""
    given = {
        "--name": name,
        "--params": params if params != PARAMS else None,
        "--address": address,
        "--max-concurrent": max_concurrent,
        "--gpus-per-trial": gpus_per_trial,
    }
    options = [str(part) for option in given.items() if option[1] is not None for part in option]
    return shlex.join(["pipeline", "tune", "--resume", *options])


def _report_end(sweep: Sweep, plan: SweepPlan, resume_hint: str) -> None:
    """Say whether time ran out.

    Raises:
        KilosegError: every trial failed.
    """
    records = sweep.records()
    if sum(record.done for record in records) < plan.trials:
        typer.echo(f"the time is up; {resume_hint}")
    if records and all(record.outcome == "failed" for record in records):
        raise KilosegError(
            "every trial failed",
            where=sweep.folder,
            found=records[0].error,
            hint="fix that (trials/NNN/traceback.txt may say more), and start a sweep under another --name",
        )


@app.command()
def best(name: Name = None, params: Params = PARAMS) -> None:
    """Show a sweep's trials, the best first, with the Pareto front of mIoU and memory marked."""
    _show(_sweep(_settings(params), name))


@app.command(name="apply")
def apply_(
    name: Name = None,
    trial: Annotated[int | None, typer.Option(help="Instead of the best one.", min=0)] = None,
    swept_only: Annotated[
        bool, typer.Option("--swept-only", help="Leave out tune.fixed and the trials' number of threads.")
    ] = False,
    params: Params = PARAMS,
) -> None:
    """Write the best trial's settings into the settings file; `dvc repro` then gives its very numbers."""
    from pipeline.tuning.results import apply_values, best_trial, other_settings

    sweep = _sweep(_settings(params), name)
    record = best_trial(sweep, trial)
    changes = apply_values(params, sweep.plan, record, swept_only=swept_only)
    values = ", ".join(f"{key} {value}" for key, value in sweep.plan.used(record.values).items())
    typer.echo(f"trial {record.number} of {sweep.plan.name}: {values}")
    typer.echo(changes or f"{params} says so already")
    others = other_settings(params, sweep.plan, record)
    if others:
        typer.echo("the training will not be the trial's, since other settings differ: " + "; ".join(others))
    typer.echo("train with them: dvc repro")


def parse_seconds(text: str) -> float:
    """Parse "90s", "30m", "1.5h" or "600" as seconds.

    Raises:
        UsageError: anything else.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", text)
    seconds = float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]] if match else 0.0
    if seconds <= 0:
        raise UsageError(
            "not a time", where="--time-budget", found=repr(text), allowed="for example 90s, 30m or 2h"
        )
    return seconds


def _settings(params: Path) -> Settings:
    from pipeline.config.load import load_settings

    return load_settings(params)


def _sweep(settings: Settings, name: str | None) -> Sweep:
    from pipeline.tuning.sweep import find_sweep

    return find_sweep(settings.tune.folder, name)


def _describe(plan: SweepPlan, space: Space) -> None:
    variant = plan.settings["variant"]
    start = "the plain settings" if variant is None else f"variant {variant}"
    typer.echo(f"sweep {plan.name}: {plan.trials} trials from {start}, for {' and '.join(plan.objectives)}")
    for dimension in space.dimensions:
        typer.echo(f"  {dimension}")
    if space.size < space.points:
        typer.echo(f"  {space.points} points, {space.size} trainings: some differ only in unused settings")
    if plan.trials == space.size:
        typer.echo(f"  these are all {plan.trials} points of the space")
    elif space.grid_size > plan.trials:
        typer.echo(f"  only {plan.trials} of the grid's {space.grid_size} points are tried; raise --trials")
    if plan.memory_budget_gib is not None:
        typer.echo(f"  points predicted above {plan.memory_budget_gib:.2f} GiB are not trained")


def _show(sweep: Sweep) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from pipeline.tuning.results import pareto_front, ranked, summary

    plan, records = sweep.plan, sweep.records()
    front = {record.number for record in pareto_front(records)}
    table = Table(title=f"sweep {plan.name}: {summary(records)}", box=SIMPLE_HEAD, padding=0)
    swept = (key.rpartition(".")[2] for key in plan.space)
    for column in ("trial", *swept, f"{plan.objectives[0]}, %", "memory, GiB"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("outcome", no_wrap=True)
    for record in ranked(records):
        values = plan.used(record.values)
        table.add_row(
            ("* " if record.number in front else "") + str(record.number),
            *(_short_number(values.get(key, "")) for key in plan.space),
            "" if record.score is None else f"{100 * record.score:.2f}",
            "" if record.memory_gib is None else f"{record.memory_gib:.3f}",
            record.outcome,
        )
    Console().print(table)
    typer.echo(f"* on the Pareto front of mIoU and memory ({plan.memory_kind})")
    if any(record.outcome != "finished" for record in records):
        typer.echo("only finished trials compete; the mIoU of the others is the held-out part's so far")
    if front:
        typer.echo(f"keep the best: pipeline tune apply --name {plan.name}")


def _short_number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
