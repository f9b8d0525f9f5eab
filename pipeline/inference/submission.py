"""Write predictions as the server of a benchmark takes them: Cityscapes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pipeline.data.labels.label_space import LabelSpace
from pipeline.inference.inputs import Input
from pipeline.inference.outputs import writing_outputs
from pipeline.runtime.errors import UsageError
from pipeline.runtime.files import atomic_path

_NAME = re.compile(r"([^_]+_\d{6}_\d{6})(_leftImg8bit)?")
_ABOUT = "kiloseg"  # the PNG's text that says what made it: no file but PNGs may be uploaded


@dataclass(frozen=True)
class CityscapesSubmission:
    """One 8-bit PNG of label ids for each picture, named by city, sequence and frame, in one flat folder.

    Attributes:
        label_ids: the published label id of each class id; that of 0, unlabeled, is 0.
    """

    label_ids: tuple[int, ...]

    @classmethod
    def of(cls, label_space: LabelSpace) -> CityscapesSubmission:
        """Return the submission for a checkpoint's classes.

        Raises:
            UsageError: a label space of another dataset.
        """
        ids = [entry.category_ids.get("cityscapes", ()) for entry in label_space.classes]
        if not all(ids):
            foreign = next(entry for entry, found in zip(label_space.classes, ids, strict=True) if not found)
            raise UsageError(
                "predictions that are not of Cityscapes",
                where="--format cityscapes",
                found=f"a label space with {foreign.name!r} of {foreign.source}",
                allowed="a checkpoint trained with data.layout: cityscapes",
            )
        return cls((0, *(found[0] for found in ids)))

    def check(self, pictures: Sequence[Input]) -> None:
        """Refuse pictures that the server could not match, before any is predicted.

        Raises:
            UsageError: a name without city, sequence and frame, or one that comes twice.
        """
        first: dict[str, Input] = {}
        for picture in pictures:
            match = _NAME.fullmatch(picture.path.stem)
            if match is None:
                raise UsageError(
                    "a picture that is not named as Cityscapes names them",
                    where=picture.path,
                    allowed="CITY_000000_000019_leftImg8bit.png, six digits for sequence and frame",
                    hint="name the folder leftImg8bit/test (or val) as it was unpacked",
                )
            other = first.setdefault(match[1], picture)
            if other is not picture:
                raise UsageError(
                    "two pictures of one frame",
                    where=picture.path,
                    found=f"{other.path} is called the same",
                    hint="predict them into two folders",
                )

    def path(self, folder: Path, picture: Path) -> Path:
        """Return the file of a picture."""
        return folder / f"{picture.stem.removesuffix('_leftImg8bit')}_labelIds.png"

    def write(self, class_map: np.ndarray, picture: Path, folder: Path, about: Mapping[str, Any]) -> Path:
        """Write a prediction.

        Args:
            class_map: (H, W) class ids at the picture's full resolution, 0 = unlabeled.
            picture: what was predicted.
            folder: is made if need be.
            about: what made it, kept as a text in the PNG.

        Returns:
            The file.

        Raises:
            KilosegError: the disk is full, or the folder cannot be written.
        """
        path = self.path(folder, picture)
        text = PngInfo()
        text.add_text(_ABOUT, json.dumps(about))
        image = Image.fromarray(np.array(self.label_ids, np.uint8)[class_map])
        with writing_outputs(path), atomic_path(path) as temporary:
            image.save(temporary, format="PNG", pnginfo=text)
        return path

    def is_done(self, picture: Path, folder: Path, about: Mapping[str, Any]) -> bool:
        """Whether the picture's file is there, made by the same checkpoint with the same options."""
        try:
            with Image.open(self.path(folder, picture)) as image:
                return bool(image.info.get(_ABOUT) == json.dumps(about))
        except OSError:
            return False
