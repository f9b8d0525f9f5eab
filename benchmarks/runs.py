"""Train settings from several seeds on the embedded dataset and evaluate them on val.

A finished run is a line of FOLDER/runs.jsonl, so that the same command goes on where it was stopped.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.checkpoint.format import load_checkpoint
from pipeline.config.load import load_settings
from pipeline.config.paths import TINY, bootstrapped_folder
from pipeline.config.schema import Settings
from pipeline.data.bootstrap.build import bootstrap
from pipeline.data.bootstrap.options import BootstrapOptions
from pipeline.data.loading.dataset import SegmentationDataset
from pipeline.data.loading.loaders import evaluation_loader
from pipeline.data.tiny.generate import generate_tiny
from pipeline.evaluation.evaluate import evaluate
from pipeline.runtime.device import choose_device
from pipeline.tracking.tracker import NoTracker
from pipeline.training.trainer import train

Result = Mapping[str, float | None]


@dataclass(frozen=True)
class Runs:
    """Train and evaluate what is not known yet.

    Attributes:
        params: the settings file.
        folder: where data, checkpoints and results are kept.
    """

    params: Path
    folder: Path

    def results(self, name: str, variant: str, changes: Mapping[str, object], seeds: int) -> list[Result]:
        """Return the metrics on val of each seed, trained as the variant with the changes on top."""
        return [self._result(name, variant, {**changes, "train.seed": seed}) for seed in range(seeds)]

    def _result(self, name: str, variant: str, changes: Mapping[str, object]) -> Result:
        settings = load_settings(self.params, variant=variant, overrides=changes)
        settings = settings.model_copy(update={"project": self.folder})
        key = json.dumps(settings.flat() | {"threads": settings.runtime.threads}, sort_keys=True)
        for line in self._lines():
            if line["key"] == key:
                return line["metrics"]
        print(f"{name}, seed {settings.train.seed}", file=sys.stderr, flush=True)
        metrics = self._train(settings)
        with (self.folder / "runs.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "name": name, "metrics": metrics}) + "\n")
        return metrics

    def _train(self, settings: Settings) -> Result:
        bootstrap_once(settings)
        checkpoints = self.folder / "checkpoints"
        result = train(settings, NoTracker(), folder=checkpoints)
        device = choose_device(settings.runtime.device)
        data = SegmentationDataset(bootstrapped_folder(settings), settings.data.root, "val")
        evaluation = evaluate(
            load_checkpoint(result.checkpoint).segmenter().to(device),
            evaluation_loader(data, num_workers=settings.runtime.num_workers),
            frequencies=data.label_space.frequencies,
            device=device,
            title="val",
            total=len(data),
        )
        shutil.rmtree(checkpoints)
        return evaluation.metrics.flat()

    def _lines(self) -> list[dict]:
        path = self.folder / "runs.jsonl"
        lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else []
        return [json.loads(line) for line in lines if line.endswith("}")]


def bootstrap_once(settings: Settings) -> None:
    """Make the masks of the settings' dataset unless they are there; the embedded one is drawn first."""
    data = settings.data
    if data.root == (settings.file.parent / TINY).resolve():
        generate_tiny(data.root)
    if not (bootstrapped_folder(settings) / "manifest.json").is_file():
        options = BootstrapOptions(
            holdout_fraction=data.holdout_fraction,
            holdout_seed=data.holdout_seed,
            overlap=data.overlap,
            keep_classes=data.keep_classes,
        )
        bootstrap(data.root, bootstrapped_folder(settings), options)


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
