"""Read the images of a training: batches of the train split, and the held-out part to validate on."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.config.paths import bootstrapped_folder
from pipeline.config.schema import Settings
from pipeline.data.labels.label_space import LabelSpace
from pipeline.data.loading.batch import Batch
from pipeline.data.loading.dataset import SegmentationDataset
from pipeline.data.loading.loaders import evaluation_loader, train_loader
from pipeline.data.loading.sampler import repeat_factors
from pipeline.data.loading.transforms import TrainTransform
from pipeline.data.store.manifest import read_manifest
from pipeline.runtime.errors import DataError
from pipeline.train_step.long_tail import ClassFrequencies
from pipeline.training.debug import batches_to_take, images_to_validate

WORTH_WORKERS = 500
"""Held-out images from which on worker processes read them: those take seconds to start."""


@dataclass(frozen=True)
class TrainingData:
    """The two splits that a training reads, under its settings."""

    settings: Settings
    train: SegmentationDataset
    holdout: SegmentationDataset

    @classmethod
    def open(cls, settings: Settings) -> TrainingData:
        """Open the bootstrapped data.

        Raises:
            DataError: nothing bootstrapped, or a split without images.
        """
        bootstrapped, root = bootstrapped_folder(settings), settings.data.root
        train, holdout = (SegmentationDataset(bootstrapped, root, name) for name in ("train", "holdout"))
        if not len(train) or not len(holdout):
            raise DataError(
                "too few images to train",
                where=bootstrapped,
                found=f"{len(train)} train and {len(holdout)} held-out images",
                allowed="at least one of each",
                hint="add images, or change data.holdout_fraction, and run dvc repro",
            )
        data = cls(settings, train, holdout)
        if not data.has_two_classes:
            print(
                f"warning: the images to train on show one class only ({bootstrapped}): there is nothing to "
                "learn, since unlabeled pixels are no class; label the rest as a class of its own",
                file=sys.stderr,
                flush=True,
            )
        return data

    @property
    def has_two_classes(self) -> bool:
        """Tell whether the train split shows two classes or more: what is unlabeled is no class."""
        seen = read_manifest(self.train.bootstrapped)["splits"]["train"]["classes_seen"]
        return bool(seen > 1)

    @property
    def label_space(self) -> LabelSpace:
        """Return the classes."""
        return self.train.label_space

    def frequencies(self) -> ClassFrequencies | None:
        """Return how often each class is seen in the train split, if the loss asks for it."""
        loss = self.settings.loss
        if not loss.logit_adjustment and loss.class_weights is None:
            return None
        with (self.train.bootstrapped / "class_statistics.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return ClassFrequencies(
            [int(row["train_pixels"]) for row in rows], [int(row["train_images"]) for row in rows]
        )

    def batches(self, *, start_step: int, last_step: int) -> Iterable[Batch]:
        """Return the batches from the 0-based `start_step` to `last_step`, the same whenever it starts."""
        train = self.settings.train
        factors = None
        if train.repeat_threshold is not None:
            presence = self.train.class_presence()
            factors = repeat_factors(presence, self.label_space.num_classes, train.repeat_threshold)
        transform = TrainTransform(
            train.crop_size,
            scale_range=(train.scale_min, train.scale_max),
            flip_probability=train.flip_probability,
        )
        batches = train_loader(
            self.train,
            transform,
            batch_size=train.images_per_step,
            num_steps=last_step,
            seed=train.seed,
            start_step=0 if train.debug == "one_batch" else start_step,
            num_workers=self.settings.runtime.num_workers,
            factors=factors,
        )
        return batches_to_take(batches, train, last_step - start_step)

    def held_out(self) -> tuple[Iterable[Batch], int]:
        """Return the batches of the held-out part, and its number of images."""
        limit = images_to_validate(self.settings.train)
        total = len(self.holdout) if limit is None else min(limit, len(self.holdout))
        workers = self.settings.runtime.num_workers if total >= WORTH_WORKERS else 0
        return evaluation_loader(self.holdout, num_workers=workers, limit=limit), total
