"""Predict many files: reading and writing go on in threads while the network computes."""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.inference.images import read_picture
from pipeline.inference.inputs import Input
from pipeline.inference.outputs import output_paths
from pipeline.inference.prediction import Prediction
from pipeline.inference.predictor import Predictor
from pipeline.inference.submission import CityscapesSubmission
from pipeline.runtime.errors import DataError
from pipeline.runtime.progress import Progress

_THREADS = 2  # that read, and that write: decoding and encoding leave Python's lock
_NAMED = 5  # files of a failure that the error names


@dataclass(frozen=True)
class Job:
    """How files are predicted.

    Attributes:
        out: folder of the outputs.
        rle: write run-length masks too.
        about: what every JSON is to say: the checkpoint and the options that can change a result.
        skip_existing: leave out pictures whose outputs are whole and say the same about themselves.
        submission: write what a benchmark's server takes, and nothing else.
    """

    out: Path
    rle: bool = False
    about: Mapping[str, Any] = field(default_factory=dict)
    skip_existing: bool = False
    submission: CityscapesSubmission | None = None

    def is_done(self, picture: Input) -> bool:
        """Whether the picture's outputs are there, made by the same checkpoint with the same options."""
        if self.submission is not None:
            return self.submission.is_done(picture.path, self.out, self._record(picture))
        paths = output_paths(self.out, picture.name, rle=self.rle)
        if not all(path.is_file() for path in paths.values()):
            return False
        try:
            record = json.loads(paths["json"].read_text(encoding="utf-8"))
        except ValueError:
            return False
        return isinstance(record, dict) and {**record, **self._record(picture)} == record

    def save(self, picture: Input, prediction: Prediction) -> None:
        """Write the outputs of a picture."""
        if self.submission is not None:
            self.submission.write(prediction.class_map, picture.path, self.out, self._record(picture))
            return
        prediction.save(self.out, picture.name, rle=self.rle, about=self._record(picture))

    def _record(self, picture: Input) -> dict[str, Any]:
        return {"image": str(picture.path), **self.about}


@dataclass
class Outcome:
    """What became of the files."""

    written: int = 0
    skipped: int = 0
    failed: list[DataError] = field(default_factory=list)

    def check(self) -> None:
        """Raise `DataError` if a picture could not be read; the others' outputs are whole."""
        if self.failed:
            names = ", ".join(error.where or "" for error in self.failed[:_NAMED])
            more = len(self.failed) - _NAMED
            raise DataError(
                f"{len(self.failed)} of {self.written + self.skipped + len(self.failed)} pictures "
                "could not be read",
                found=names + (f" and {more} more" if more > 0 else ""),
                hint="mend or remove them and run again with --skip-existing",
            )


def predict_files(predictor: Predictor, pictures: Sequence[Input], job: Job) -> Outcome:
    """Predict pictures and write their outputs; a file that cannot be read is named and passed over.

    Args:
        predictor: predicts as many pictures at once as its views' batch size.
        pictures: from `find_inputs`.
        job: where and what to write.

    Raises:
        MemoryLimitError: a picture too large for the device.
        KilosegError: the disk is full, or the folder cannot be written.
    """
    todo = [one for one in pictures if not (job.skip_existing and job.is_done(one))]
    outcome = Outcome(skipped=len(pictures) - len(todo))
    size = predictor.views.batch_size
    with (
        ThreadPoolExecutor(_THREADS) as readers,
        ThreadPoolExecutor(_THREADS) as writers,
        Progress("predict", len(pictures), start=outcome.skipped) as progress,
    ):
        writing: deque[Future[None]] = deque()
        try:
            read = _read_ahead(readers, todo, size + _THREADS)
            while batch := list(islice(read, size)):
                good = [(one, pixels) for one, pixels in batch if not isinstance(pixels, DataError)]
                for _, problem in batch:
                    if isinstance(problem, DataError):
                        outcome.failed.append(problem)
                        print(f"warning: {problem}", file=sys.stderr, flush=True)
                predictions = predictor([pixels for _, pixels in good])
                for (one, _), prediction in zip(good, predictions, strict=True):
                    while len(writing) >= 2 * _THREADS:  # a full disk or a slow one is waited for here
                        writing.popleft().result()
                    writing.append(writers.submit(job.save, one, prediction))
                    outcome.written += 1
                progress.advance(steps=len(batch))
            while writing:
                writing.popleft().result()
        except BaseException:
            readers.shutdown(wait=False, cancel_futures=True)  # what was predicted is still written
            raise
    return outcome


def _read_ahead(
    readers: ThreadPoolExecutor, pictures: Sequence[Input], ahead: int
) -> Iterator[tuple[Input, np.ndarray | DataError]]:
    """Yield the pictures' pixels in order, or what is wrong with them, a few read in advance."""
    waiting: deque[tuple[Input, Future[np.ndarray | DataError]]] = deque()
    for picture in pictures:
        waiting.append((picture, readers.submit(_read, picture.path)))
        if len(waiting) > ahead:
            first, future = waiting.popleft()
            yield first, future.result()
    while waiting:
        first, future = waiting.popleft()
        yield first, future.result()


def _read(path: Path) -> np.ndarray | DataError:
    try:
        return read_picture(path)
    except DataError as problem:
        return problem
