"""Say what identifies a training: all that changes its result, and nothing else.

That is the model, the loss, the train settings (`train.steps` too, over which the learning rate falls) and
the content of the train and the held-out part. Paths do not count, nor what only says how a machine gets
there: the sections evaluate, tracking and runtime, and the keys of `OF_THE_MACHINE`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pipeline.checkpoint.format import Checkpoint
from pipeline.config.data_section import DataSettings
from pipeline.config.paths import bootstrapped_folder
from pipeline.config.schema import OF_THE_MACHINE, LossSettings, ModelSettings, Settings, TrainSettings
from pipeline.data.labels.label_space import LabelSpace
from pipeline.data.store.manifest import read_manifest
from pipeline.runtime.errors import DataError
from pipeline.runtime.files import file_digest

DATA = "data"
"""Key of the digest of the data."""

_ABSENT = object()


@dataclass(frozen=True)
class Identity:
    """Hold what identifies a training.

    Attributes:
        values: settings by dotted key, files by their digest, and the digest of the data.
        settings: every setting, to put a difference into words.
        label_space: the classes of the data.
    """

    values: Mapping[str, object]
    settings: Mapping[str, object]
    label_space: LabelSpace

    @classmethod
    def of(cls, settings: Settings) -> Identity:
        """Return the identity of a training under these settings, on the data as bootstrapped now.

        Raises:
            DataError: nothing bootstrapped, or a file of it is missing.
        """
        folder, flat = bootstrapped_folder(settings), settings.flat()
        values = _counted(flat) | {DATA: data_digest(folder)}
        for name, value in settings.model:
            if isinstance(value, Path) and value.is_file():  # a missing file is named when it is needed
                values[f"model.{name}"] = file_digest(value)
        return cls(values, flat, LabelSpace.load(folder / "label_space.json"))

    @cached_property
    def name(self) -> str:
        """Return 12 hexadecimal digits that stand for the values."""
        return identity_name(self.values)

    def differences(self, checkpoint: Checkpoint) -> list[str]:
        """Return in words, key by key, how the training that left the checkpoint differs; [] if it is this.

        A key that the checkpoint lacks, since it was written before the setting existed, has its default.
        """
        mine, theirs = self.values, checkpoint.identity
        if theirs is None:  # written by a version that kept settings alone: the data as they say
            mine, theirs = _with_data(self.settings), _with_data(checkpoint.settings)
            theirs |= {} if checkpoint.label_space == self.label_space else {DATA: "other classes"}
        keys = sorted({*mine, *theirs})
        found = [key for key in keys if _value(mine, key) != _value(theirs, key)]
        return [words for key in found for words in self._words(key, checkpoint)]

    def _words(self, key: str, checkpoint: Checkpoint) -> list[str]:
        if key != DATA:
            then, now = _value(checkpoint.settings, key), _value(self.settings, key)
            return [
                f"{key}: {_shown(then)} then, {_shown(now)} now" if then != now else f"{key}: another file"
            ]
        then, now = _data_settings(checkpoint.settings), _data_settings(self.settings)
        changed = [one for one in sorted({*then, *now}) if then.get(one) != now.get(one)]
        words = [f"{one}: {_shown(then.get(one))} then, {_shown(now.get(one))} now" for one in changed]
        return words or ["the bootstrapped images or labels"]


def identity_of(checkpoint: Checkpoint) -> Mapping[str, object]:
    """Return what identifies the training that left a checkpoint, of whichever version."""
    return _with_data(checkpoint.settings) if checkpoint.identity is None else checkpoint.identity


def identity_name(values: Mapping[str, object]) -> str:
    """Return 12 hexadecimal digits that stand for these values."""
    return hashlib.sha256(json.dumps(dict(values), sort_keys=True).encode()).hexdigest()[:12]


def data_digest(bootstrapped: Path) -> str:
    """Return the digest of what a training learns from: label space, train and held-out part.

    Raises:
        DataError: nothing bootstrapped there, or a file of it is missing.
    """
    splits = read_manifest(bootstrapped)["splits"]
    shards = [shard["file"] for split in ("train", "holdout") for shard in splits[split]["shards"]]
    whole = hashlib.sha256()
    try:
        for name in ("label_space.json", *shards):
            whole.update(file_digest(bootstrapped / name).encode())
    except OSError as error:
        raise DataError(
            "missing or unreadable file of the bootstrapped data",
            where=error.filename or bootstrapped,
            found=error.strerror,
            hint="make it again: dvc repro bootstrap, or pipeline data bootstrap ROOT OUT",
        ) from error
    return whole.hexdigest()


def _counted(flat: Mapping[str, object]) -> dict[str, object]:
    sections = ("model.", "loss.", "train.")
    return {
        key: value for key, value in flat.items() if key.startswith(sections) and key not in OF_THE_MACHINE
    }


def _data_settings(flat: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in flat.items() if key.startswith("data.") and key != "data.root"}


def _with_data(flat: Mapping[str, object]) -> dict[str, object]:
    return _counted(flat) | _data_settings(flat)


_DEFAULTS: dict[str, object] = {
    f"{section}.{key}": value
    for section, defaults in (
        ("data", DataSettings(root=Path())),
        ("model", ModelSettings()),
        ("loss", LossSettings()),
        ("train", TrainSettings()),
    )
    for key, value in defaults.model_dump(mode="json").items()
}


def _value(values: Mapping[str, object], key: str) -> object:
    return values.get(key, _DEFAULTS.get(key, _ABSENT))


def _shown(value: object) -> str:
    return "nothing" if value is _ABSENT else json.dumps(value)
