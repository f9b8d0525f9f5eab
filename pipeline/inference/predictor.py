"""Predict pictures with a trained checkpoint, at memory that does not grow with the number of classes."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import overload

import torch
from torch import Tensor

from models.segmenter import Segmenter
from pipeline.checkpoint.format import Checkpoint, load_checkpoint
from pipeline.data.labels.label_space import LabelSpace
from pipeline.inference.images import Picture, as_pixels, as_tensor
from pipeline.inference.locate import located
from pipeline.inference.prediction import Prediction, found_classes
from pipeline.inference.search import ClassSearch
from pipeline.inference.windows import SMALLEST_WINDOW, Views, averaged_output
from pipeline.runtime.device import choose_device, is_out_of_memory
from pipeline.runtime.errors import MemoryLimitError, UsageError
from pipeline.runtime.files import file_digest


class Predictor:
    """A trained network with its label space: call it with a picture, or with a list of them.

    A picture is first embedded, whole or in windows (`pipeline.inference.windows`), then each of its pixels
    is given the most similar class (`pipeline.inference.search`). Memory beyond the network's own is D
    numbers for each of the pixels at stride 4, and 7 bytes a pixel for picture, class map and confidence.

    Args:
        segmenter: the trained network, on the device to use.
        label_space: its classes.
        temperature: divides the similarities, as in the loss; only the confidence depends on it.
        similarity: "distance" or "cosine", as in the loss; only the confidence depends on it.
        classes: names or class ids to search; None for all.
        min_confidence: pixels of a smaller probability become unlabeled, 0 to 1.
        views: windows, scales and flips.

    Raises:
        UsageError: an unknown class, or a confidence out of range.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        label_space: LabelSpace,
        *,
        temperature: float = 1.0,
        similarity: str = "distance",
        classes: Iterable[str | int] | None = None,
        min_confidence: float = 0.0,
        views: Views | None = None,
    ) -> None:
        if not 0 <= min_confidence <= 1:
            raise UsageError("min_confidence is out of range", found=min_confidence, allowed="0 to 1")
        self.segmenter, self.label_space = segmenter.eval(), label_space
        self.min_confidence, self.views = min_confidence, views or Views()
        train_ids = None if classes is None else [i - 1 for i in find_classes(label_space, classes)]
        self.about: dict[str, object] = {}  # which checkpoint this is; set by `load`
        self.search = ClassSearch(segmenter.head, train_ids, temperature=temperature, similarity=similarity)

    @classmethod
    def load(
        cls,
        source: Path | str,
        *,
        device: str = "auto",
        classes: Iterable[str | int] | None = None,
        min_confidence: float = 0.0,
        views: Views | None = None,
    ) -> Predictor:
        """Load a checkpoint.

        Args:
            source: a checkpoint, the folder of a run, or a model in MLflow ("models:/NAME@ALIAS").
            device: auto, cpu, cuda or cuda:N.
            classes, min_confidence, views: as of the class.

        Raises:
            DataError: no checkpoint, a damaged one, or one of another version.
            UsageError: an unknown class.
            KilosegError: no such device.
        """
        with located(source) as path:
            checkpoint = load_checkpoint(path)
            digest = file_digest(path)
        predictor = cls.from_checkpoint(
            checkpoint, device=device, classes=classes, min_confidence=min_confidence, views=views
        )
        predictor.about = {"checkpoint": str(source), "sha256": digest, "step": checkpoint.step}
        return predictor

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: Checkpoint,
        *,
        device: str = "auto",
        classes: Iterable[str | int] | None = None,
        min_confidence: float = 0.0,
        views: Views | None = None,
    ) -> Predictor:
        """As `load`, from a checkpoint that was read before."""
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
            raise UsageError("no such device", found=device, allowed="auto, cpu, cuda, cuda:N")
        chosen = choose_device(device)
        settings = checkpoint.settings
        return cls(
            checkpoint.segmenter().to(chosen),
            checkpoint.label_space,
            temperature=float(str(settings.get("loss.temperature", 1.0))),
            similarity=str(settings.get("loss.similarity", "distance")),
            classes=classes,
            min_confidence=min_confidence,
            views=views,
        )

    def searching(self, classes: Iterable[str | int] | None) -> Predictor:
        """Return a predictor of the same network that searches some classes only; None for all.

        Raises:
            UsageError: an unknown class.
        """
        other = Predictor(
            self.segmenter,
            self.label_space,
            temperature=self.search.temperature,
            similarity=self.search.similarity,
            classes=classes,
            min_confidence=self.min_confidence,
            views=self.views,
        )
        other.about = self.about
        return other

    def record(self) -> dict[str, object]:
        """Return the checkpoint and the options that can change a result, as plain types for JSON."""
        views = dataclasses.asdict(self.views)
        del views["batch_size"]
        searched = (self.search.train_ids + 1).tolist()
        chosen = None if len(searched) == self.label_space.num_classes else searched
        options = {"classes": chosen, "min_confidence": self.min_confidence, **views}
        return {**self.about, "options": {**options, "scales": list(self.views.scales)}}

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.segmenter.parameters()).device

    @overload
    def __call__(self, image: Picture) -> Prediction: ...

    @overload
    def __call__(self, image: list[Picture] | tuple[Picture, ...]) -> list[Prediction]: ...

    def __call__(self, image: Picture | list[Picture] | tuple[Picture, ...]) -> Prediction | list[Prediction]:
        """Predict.

        Args:
            image: a path, a PIL image, an array (H, W[, 3 or 4]) or a tensor (3, H, W); or a list of them, of
                any sizes; or a tensor (N, 3, H, W).

        Returns:
            One prediction, or a list of them for a list or a batch.

        Raises:
            DataError: a file that cannot be read.
            UsageError: what is no image.
            MemoryLimitError: a picture too large for the device, with the window that fits.
        """
        if isinstance(image, Tensor) and image.dim() == 4:
            return self._predict(list(image))
        if isinstance(image, list | tuple):
            return self._predict(image)
        return self._predict([image])[0]

    def _predict(self, images: Sequence[Picture]) -> list[Prediction]:
        pixels = [as_pixels(image) for image in images]
        pictures = [as_tensor(one) for one in pixels]
        found = ""
        try:
            outputs = averaged_output(self.segmenter, pictures, self.views)
            predictions = []
            for picture, output in zip(pixels, outputs, strict=True):
                height, width = picture.shape[:2]
                class_map, confidence = self.search(
                    output, (height, width), min_confidence=self.min_confidence
                )
                classes = found_classes(class_map, confidence, self.label_space.classes)
                predictions.append(Prediction(picture, class_map, confidence, classes))
            return predictions
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            found = str(error).partition("\n")[0]
        # outside, so that what the failed attempt held is free again
        raise self._too_large(pictures, found)

    def _too_large(self, pictures: Sequence[Tensor], found: str) -> MemoryLimitError:
        height, width = max((picture.shape[-2:] for picture in pictures), key=lambda size: size.numel())
        longest = max(height, width) * max(self.views.scales) * self.segmenter.input_scale
        window = self._fitting_window(int(min(longest, self.views.window or longest)))
        return MemoryLimitError(
            "out of memory",
            where=f"a picture of {width} x {height} (width x height) on {self.device}",
            found=found or None,
            hint="free memory: not even the smallest window fits"
            if window is None
            else f"--window {window} fits"
            + (f", with --batch-size 1 instead of {self.views.batch_size}" * (self.views.batch_size > 1)),
        )

    def _fitting_window(self, side: int) -> int | None:
        """Return the largest window that the network was seen to take, of sides halved again and again."""
        window = side
        while (window := window // 2 // SMALLEST_WINDOW * SMALLEST_WINDOW) >= SMALLEST_WINDOW:
            try:
                averaged_output(self.segmenter, [torch.zeros(3, window, window, dtype=torch.uint8)], Views())
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                continue
            return window
        return None


def find_classes(label_space: LabelSpace, wanted: Iterable[str | int]) -> list[int]:
    """Return the class ids of names or class ids, ascending.

    Case does not count, and blanks stand for underscores; a name that several classes bear means all. Text of
    digits means an id, or a name where no class has that id; in double quotes it is a name.

    Raises:
        UsageError: an unknown class, with the nearest names; a number of two meanings; or none at all.
    """
    names: dict[str, list[int]] = {}
    for entry in label_space.classes:
        names.setdefault(_plain(entry.name), []).append(entry.class_id)
    found: set[int] = set()
    for key in wanted:
        number = int(key) if isinstance(key, int) or key.strip().isdecimal() else None
        name = _plain(str(key))
        if len(name) > 1 and name[0] == name[-1] == '"':  # a name of digits
            name = name[1:-1]
        is_id = number is not None and 1 <= number <= label_space.num_classes
        if number is not None and is_id:
            if not isinstance(key, int):
                label_space.require_clear(number, names.get(name, ()), "classes")
            found.add(number)
        elif name in names:
            found.update(names[name])
        else:
            close = difflib.get_close_matches(_plain(str(key)), list(names), n=3)
            shown = [label_space.classes[names[name][0] - 1].name for name in close]
            raise UsageError(
                "no such class",
                where="classes",
                found=repr(key),
                allowed=f"names, or class ids from 1 to {label_space.num_classes}",
                hint=f"did you mean {', '.join(shown)}?" if shown else "list them: pipeline classes list",
            )
    if not found:
        raise UsageError("no class to search", where="classes", allowed="one or more names or class ids")
    return sorted(found)


def _plain(name: str) -> str:
    return name.strip().casefold().replace(" ", "_")
