"""What benchmarks that train share: data made once, evaluation of a split, runs from several seeds.

A finished run is a line of FOLDER/runs.jsonl, so that the same command goes on where it was stopped. It is
known by its settings and by the code that trained it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from benchmarks.record import describe_machine, save
from pipeline.checkpoint.format import load_checkpoint
from pipeline.config.load import load_settings
from pipeline.config.paths import TINY, bootstrapped_folder
from pipeline.config.schema import Settings
from pipeline.data.bootstrap.build import bootstrap
from pipeline.data.bootstrap.options import BootstrapOptions
from pipeline.data.layouts.layout import LayoutOptions
from pipeline.data.loading.dataset import SegmentationDataset
from pipeline.data.loading.loaders import evaluation_loader
from pipeline.data.tiny.generate import generate_tiny
from pipeline.evaluation.evaluate import evaluate
from pipeline.evaluation.metrics import Metrics
from pipeline.runtime.device import choose_device
from pipeline.runtime.files import file_digest
from pipeline.tracking.journal import append_events, read_events
from pipeline.tracking.tracker import NoTracker
from pipeline.training.trainer import train

Result = Mapping[str, float | None]
Trial = Callable[[], AbstractContextManager[None]]
"""Of a change that no setting makes: in force within the context."""
COLUMNS = {
    "miou": "mIoU",
    "miou_rare": "rare",
    "miou_common": "common",
    "miou_frequent": "frequent",
    "miou_stuff": "stuff",
    "mean_accuracy": "class accuracy",
    "pixel_accuracy": "pixel accuracy",
}


@dataclass(frozen=True)
class Runs:
    """Train and evaluate what is not known yet.

    Attributes:
        params: the settings file.
        folder: where data, checkpoints and results are kept.
    """

    params: Path
    folder: Path

    def results(
        self, name: str, variant: str, changes: Mapping[str, object], seeds: int, trial: Trial | None = None
    ) -> list[Result]:
        """Return the metrics on val of each seed, trained as the variant with the changes on top.

        With a trial, trainings are made within it, and known again by the name.
        """
        return [self._result(name, variant, {**changes, "train.seed": seed}, trial) for seed in range(seeds)]

    def _result(self, name: str, variant: str, changes: Mapping[str, object], trial: Trial | None) -> Result:
        settings = load_settings(self.params, variant=variant, overrides=changes)
        settings = settings.model_copy(update={"project": self.folder})
        facts = settings.flat() | {"threads": settings.runtime.threads, "code": code_digest()}
        key = json.dumps(facts if trial is None else facts | {"trial": name}, sort_keys=True)
        for line in read_events(self.folder / "runs.jsonl"):
            if line["key"] == key:
                return line["metrics"]
        print(f"{name}, seed {settings.train.seed}", file=sys.stderr, flush=True)
        with nullcontext() if trial is None else trial():
            metrics = self._train(settings)
        append_events(
            self.folder / "runs.jsonl", [json.dumps({"key": key, "name": name, "metrics": metrics})]
        )
        return metrics

    def _train(self, settings: Settings) -> Result:
        bootstrap_once(settings)
        checkpoints = self.folder / "checkpoints"
        result = train(settings, NoTracker(), folder=checkpoints)
        metrics = evaluate_split(settings, result.checkpoint, "val")
        shutil.rmtree(checkpoints)
        return metrics.flat()


@functools.cache
def code_digest() -> str:
    """Return a digest of the sources that train and evaluate: a run of others is not known."""
    root = Path(__file__).parents[1]
    folders = (
        "models",
        "pipeline/data/loading",
        "pipeline/train_step",
        "pipeline/training",
        "pipeline/evaluation",
    )
    files = sorted(path for folder in folders for path in (root / folder).rglob("*.py"))
    return hashlib.sha256("".join(map(file_digest, files)).encode()).hexdigest()


def evaluate_split(settings: Settings, checkpoint: Path, split: str) -> Metrics:
    """Evaluate a checkpoint on `evaluate.max_images` images of a split."""
    device = choose_device(settings.runtime.device)
    data = SegmentationDataset(bootstrapped_folder(settings), settings.data.root, split)
    limit = settings.evaluate.max_images
    return evaluate(
        load_checkpoint(checkpoint).segmenter().to(device),
        evaluation_loader(data, num_workers=settings.runtime.num_workers, limit=limit),
        frequencies=data.label_space.frequencies,
        device=device,
        title=split,
        total=min(len(data), limit or len(data)),
    ).metrics


def bootstrap_once(settings: Settings) -> None:
    """Make the masks of the settings' dataset unless they are there; the embedded one is drawn first."""
    data = settings.data
    if data.root == (settings.file.parent / TINY).resolve():
        generate_tiny(data.root)
    if not (bootstrapped_folder(settings) / "manifest.json").is_file():
        options = BootstrapOptions(
            layout=data.layout,
            holdout_fraction=data.holdout_fraction,
            holdout_seed=data.holdout_seed,
            overlap=data.overlap,
            keep_classes=data.keep_classes,
            of_layout=LayoutOptions(data.voc.augmented, data.cocostuff.classes),
        )
        bootstrap(data.root, bootstrapped_folder(settings), options)


def show(name: str, about: str, rows: Mapping[str, Sequence[Result]], *, keep: bool) -> None:
    """Print the table of a benchmark, and save it as benchmarks/results/NAME where it is to be kept."""
    seeds = max(map(len, rows.values()))
    title = f"{about}{seeds} seeds, on val: per cent, mean ± standard deviation over the seeds"
    sections = [describe_machine("cpu"), title, table(rows, COLUMNS)]
    print("\n\n".join(sections))
    if keep:
        print(f"\nsaved {save(name, 'cpu', sections)}")


def table(rows: Mapping[str, Sequence[Result]], columns: Mapping[str, str]) -> str:
    """Format a line for each row: mean and standard deviation over the seeds, in per cent.

    Args:
        rows: name to the results of each seed.
        columns: a metric's name to its title.
    """
    width = 2 + max(map(len, rows))
    lines = ["".ljust(width) + "".join(f"{title:>15}" for title in columns.values())]
    for name, results in rows.items():
        cells = (_spread([result[metric] for result in results]) for metric in columns)
        lines.append(name.ljust(width) + "".join(f"{cell:>15}" for cell in cells))
    return "\n".join(lines)


def _spread(values: Sequence[float | None]) -> str:
    known = [100 * value for value in values if value is not None]
    if len(known) < len(values):
        return "-"
    deviation = f" ± {statistics.stdev(known):.1f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.1f}{deviation}"
