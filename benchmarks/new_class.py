"""One more class from a few pictures, without training, beside retraining with that class.

    python -m benchmarks.new_class --save

Ten classes of the embedded dataset are left out of the labels: their pixels are unlabeled in the training.
Then each is added alone with what `pipeline classes add` does, from 1, 5 and 20 of the training pictures that
show it. Measured on val:

new       IoU of the added class, the other nine ignored; `retrained` has that of a training on all classes.
old       mIoU of the other classes on their own pixels, less that of the network before: what the new class
          takes from them.
all ten   all ten added one after the other: mean IoU of the ten and mIoU of all classes present in val.

Finished cells are lines of FOLDER/cells.jsonl, each with the identity of its training. A training goes on
where it was stopped, and a finished one is taken as it is: the same command goes on.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image
from torch import Tensor

from benchmarks.record import describe_machine, save
from benchmarks.runs import bootstrap_once
from models.heads import find_classes
from pipeline.checkpoint.format import Checkpoint, load_checkpoint
from pipeline.checkpoint.identity import Identity
from pipeline.checkpoint.run_folder import RunFolder
from pipeline.checkpoint.unfinished import is_finished
from pipeline.classes.edit import add_class
from pipeline.classes.examples import read_examples
from pipeline.classes.new_class import find_row
from pipeline.config.load import load_settings
from pipeline.config.paths import bootstrapped_folder
from pipeline.config.schema import Settings
from pipeline.data.loading.batch import IGNORE_INDEX
from pipeline.data.loading.dataset import SegmentationDataset
from pipeline.evaluation.metrics import ClassCounts
from pipeline.inference.windows import network_output
from pipeline.runtime.device import set_threads
from pipeline.runtime.signals import run_command
from pipeline.tracking.journal import append_events, read_events
from pipeline.tracking.tracker import NoTracker
from pipeline.training.trainer import train

VARIANTS = ("embedding", "softmax")
PICTURES = (1, 5, 20)
LEFT_OUT = 10
_PIXELS, _VAL_PICTURES = 40, 5  # of a class in a picture that it is added from; that show it in val


@dataclass(frozen=True)
class Cell:
    """A class, or all ten, added once."""

    variant: str
    class_id: int  # of all classes; 0 for all ten
    pictures: int
    draw: int
    tune: bool
    training: str  # the identity of the training without the ten
    new: float
    old: float  # change of the mIoU
    every: float  # mIoU of all classes, for all ten
    seconds: float


class Bench:
    """Trainings with and without the ten classes, and what val says about them."""

    def __init__(self, params: Path, folder: Path, variant: str, steps: int | None) -> None:
        self.variant, self.folder = variant, folder
        overrides: dict[str, object] = {} if steps is None else {"train.steps": steps}
        self.plain = load_settings(params, variant=variant, overrides=overrides)
        self.full = self._bootstrapped("all", self.plain)
        self.train_set, self.val = self._split("train"), self._split("val")
        self.space = self.val.label_space
        self.left_out = choose_classes(self.train_set, self.val)
        self.kept = [one.class_id for one in self.space.classes if one.class_id not in self.left_out]
        fewer = load_settings(
            params, variant=variant, overrides={**overrides, "data.keep_classes": self.kept}
        )
        self.fewer = self._bootstrapped("left_out", fewer)

    def _bootstrapped(self, name: str, settings: Settings) -> Settings:
        settings = settings.model_copy(update={"project": self.folder / name})
        bootstrap_once(settings)
        return settings

    def _split(self, split: str) -> SegmentationDataset:
        return SegmentationDataset(bootstrapped_folder(self.full), self.full.data.root, split)

    def _trained(self, settings: Settings) -> Checkpoint:
        folder = RunFolder(settings.project / "checkpoints" / self.variant)
        if is_finished(folder, Identity.of(settings)):
            return load_checkpoint(folder.best)
        print(f"{self.variant}: training in {settings.project.name}", file=sys.stderr, flush=True)
        return load_checkpoint(train(settings, NoTracker(), folder=folder.path).checkpoint)

    @cached_property
    def base(self) -> Checkpoint:
        """Trained without the ten."""
        return self._trained(self.fewer)

    @cached_property
    def base_name(self) -> str:
        """Identity of that training: a cell belongs to one network."""
        return Identity.of(self.fewer).name

    @cached_property
    def truths(self) -> list[Tensor]:
        """(H, W) class ids of all classes for each picture of val, 0 for unlabeled."""
        return [self.val[i].target + 1 for i in range(len(self.val))]

    @cached_property
    def outputs(self) -> list[Tensor]:
        """What the network without the ten gives for the pictures of val: no new row changes it."""
        return self._outputs(self.base)

    def _outputs(self, checkpoint: Checkpoint) -> list[Tensor]:
        segmenter = checkpoint.segmenter()
        with torch.no_grad():
            return [network_output(segmenter, self.val[i].image[None]) for i in range(len(self.val))]

    def predicted(self, checkpoint: Checkpoint, outputs: list[Tensor], class_ids: list[int]) -> list[Tensor]:
        """Search val; rows of the checkpoint's table are classes with these ids."""
        head, table = checkpoint.segmenter().head, torch.tensor(class_ids)
        return [
            table[find_classes(head, output, (truth.shape[0], truth.shape[1]))[0]]
            for output, truth in zip(outputs, self.truths, strict=True)
        ]

    def iou(self, predicted: list[Tensor], ignored: Iterable[int]) -> tuple[Tensor, Tensor]:
        """Return IoU and true pixels by class id less 1, where pixels of `ignored` count nowhere."""
        counts = ClassCounts(self.space.num_classes)
        gone = torch.tensor([0, *ignored])
        for found, truth in zip(predicted, self.truths, strict=True):
            target = torch.where(torch.isin(truth, gone), IGNORE_INDEX, truth - 1)
            counts.update(found - 1, target, IGNORE_INDEX)
        return counts.iou(), counts.actual

    def old(self, predicted: list[Tensor]) -> float:
        """Return the mIoU of the other classes on their own pixels."""
        iou, actual = self.iou(predicted, self.left_out)
        return float(iou[actual > 0].mean())

    def new(self, predicted: list[Tensor], class_id: int) -> float:
        """Return the IoU of one of the ten; the other nine are ignored."""
        return float(self.iou(predicted, set(self.left_out) - {class_id})[0][class_id - 1])

    def every(self, predicted: list[Tensor]) -> tuple[float, float]:
        """Return the mean IoU of the ten, and the mIoU of all."""
        iou, actual = self.iou(predicted, ())
        ten = torch.tensor(self.left_out) - 1
        return float(iou[ten].nan_to_num().mean()), float(iou[actual > 0].mean())

    def added(self, to: Checkpoint, class_id: int, pictures: int, draw: int, tune: bool) -> Checkpoint:
        """Do what `pipeline classes add` does."""
        pairs = self.examples(class_id, pictures, draw)
        segmenter = to.segmenter()
        temperature = float(str(to.settings.get("loss.temperature", 1.0)))
        row = find_row(segmenter, read_examples(segmenter, pairs), temperature=temperature, tune=tune)
        return add_class(to, f"new {class_id}", row.rows, about={})

    def examples(self, class_id: int, pictures: int, draw: int) -> list[tuple[Path, Path]]:
        """Write masks of pictures that show the class; fewer pictures of a draw are among its more."""
        shows = [i for i, ids in enumerate(self.train_set.class_presence()) if class_id - 1 in ids]
        pairs: list[tuple[Path, Path]] = []
        for index in np.random.default_rng(draw).permutation(shows):
            mask = self.folder / "masks" / str(class_id) / f"{index}.png"
            inside = self.train_set.class_mask(int(index)) == class_id
            if len(pairs) < pictures and inside.sum() >= _PIXELS:
                mask.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(inside.astype(np.uint8)).save(mask)
                pairs.append((self.train_set.root / self.train_set.row(int(index)).file, mask))
        return pairs

    def cell(self, class_id: int, pictures: int, draw: int, tune: bool) -> Cell:
        """Return the cell from the file, or make it now."""
        key = {
            "variant": self.variant,
            "class_id": class_id,
            "pictures": pictures,
            "draw": draw,
            "tune": tune,
            "training": self.base_name,
        }
        path = self.folder / "cells.jsonl"
        for line in read_events(path):
            if key.items() <= line.items():
                return Cell(**line)
        began = time.perf_counter()
        ids, changed = list(self.kept), self.base
        for one in self.left_out if class_id == 0 else [class_id]:
            changed = self.added(changed, one, pictures, draw, tune)
            ids.append(one)
        seconds = time.perf_counter() - began
        found = self.predicted(changed, self.outputs, ids)
        new, every = self.every(found) if class_id == 0 else (self.new(found, class_id), float("nan"))
        cell = Cell(**key, new=new, old=self.old(found) - self.old_before, every=every, seconds=seconds)  # type: ignore[arg-type]
        append_events(path, [json.dumps(asdict(cell))])
        return cell

    @cached_property
    def old_before(self) -> float:
        """Return the mIoU of the other classes before any is added."""
        return self.old(self.predicted(self.base, self.outputs, self.kept))

    def retrained(self) -> tuple[float, float, float, float]:
        """Return `new`, `old`, the ten's and all classes' mean IoU of a training on all classes."""
        checkpoint = self._trained(self.full)
        found = self.predicted(
            checkpoint, self._outputs(checkpoint), list(range(1, self.space.num_classes + 1))
        )
        new = statistics.mean(self.new(found, class_id) for class_id in self.left_out)
        return (new, self.old(found) - self.old_before, *self.every(found))


def choose_classes(train_set: SegmentationDataset, val: SegmentationDataset) -> list[int]:
    """Return ten class ids, spread evenly over those that enough pictures show, from common to rare."""
    shown: dict[int, int] = {}
    for index, ids in enumerate(train_set.class_presence()):
        mask = train_set.class_mask(index)
        for class_id in ids + 1:
            shown[int(class_id)] = shown.get(int(class_id), 0) + int((mask == class_id).sum() >= _PIXELS)
    in_val: dict[int, int] = {}
    for ids in val.class_presence():
        for class_id in ids + 1:
            in_val[int(class_id)] = in_val.get(int(class_id), 0) + 1
    enough = [i for i, count in shown.items() if count >= max(PICTURES) and in_val.get(i, 0) >= _VAL_PICTURES]
    enough.sort(key=lambda i: (-shown[i], i))
    return [enough[round(place)] for place in np.linspace(0, len(enough) - 1, LEFT_OUT)]


def table(bench: Bench, draws: int) -> str:
    """Measure, and write a line for each number of pictures, with and without tuning."""
    lines = [
        f"{bench.variant}: {len(bench.kept):,} classes, mIoU {100 * bench.old_before:.1f} % on theirs",
        "left out: " + ", ".join(bench.space.classes[i - 1].name for i in bench.left_out),
        f"{'from':18}{'new, IoU':>12}{'old, points':>13}{'seconds':>9}{'ten, IoU':>12}{'all, mIoU':>12}",
    ]
    for tune in (False, True):
        for pictures in PICTURES:
            rounds = range(draws)
            one = [bench.cell(i, pictures, draw, tune) for i in bench.left_out for draw in rounds]
            ten = [bench.cell(0, pictures, draw, tune) for draw in rounds]
            label = f"{pictures:>2} picture{'s' * (pictures > 1)}{', tuned' * tune}"
            columns = [100 * mean(cell.new for cell in one), 100 * mean(cell.old for cell in one)]
            columns += [100 * mean(cell.new for cell in ten), 100 * mean(cell.every for cell in ten)]
            lines.append(line(label, columns, f"{mean(cell.seconds for cell in one):.2f}"))
            print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join([*lines, line("retrained", [100 * value for value in bench.retrained()], "")])


def line(label: str, columns: list[float], seconds: str) -> str:
    new, old, ten, every = columns
    return f"{label:18}{new:>12.1f}{old:>+13.2f}{seconds:>9}{ten:>12.1f}{every:>12.1f}"


def mean(values: Iterable[float]) -> float:
    return statistics.mean(value if value == value else 0.0 for value in values)


def main(
    only: Annotated[list[str] | None, typer.Option("--variant", help="Default: embedding, softmax.")] = None,
    steps: Annotated[int | None, typer.Option(help="Default: those of params.yaml.", min=1)] = None,
    draws: Annotated[int, typer.Option(min=1, help="Choices of the pictures for each class.")] = 3,
    params: Annotated[Path, typer.Option(help="The settings file.")] = Path("params.yaml"),
    folder: Annotated[Path, typer.Option(help="Where everything is kept.")] = Path("data/new_class"),
    keep: Annotated[bool, typer.Option("--save", help="Write the result to benchmarks/results/.")] = False,
) -> None:
    """Add left-out classes from a few pictures, and compare with retraining."""
    sections = []
    for variant in only or VARIANTS:
        bench = Bench(params, folder.resolve(), variant, steps)
        set_threads(bench.plain.runtime.threads)
        sections.append(table(bench, draws))
        print(sections[-1], end="\n\n", flush=True)
    if keep:
        command = " ".join(["python -m benchmarks.new_class", *sys.argv[1:]])
        print(f"saved {save('new_class', 'cpu', [describe_machine('cpu'), command, *sections])}")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    sys.exit(run_command(app))
