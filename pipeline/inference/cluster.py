"""Predict files on all machines of a Ray cluster, by the same function as on one."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pipeline.runtime.before_torch  # noqa: F401
from pipeline.inference.inputs import Input
from pipeline.inference.predict_files import Job, Outcome, predict_files
from pipeline.inference.predictor import Predictor
from pipeline.runtime.device import set_threads
from pipeline.runtime.errors import DataError, KilosegError
from pipeline.runtime.progress import Progress

_STORE = "MLFLOW_TRACKING_URI"
_FILES = 8  # that a worker is given at a time, at least


def predict_on_cluster(
    source: str, options: Mapping[str, Any], pictures: Sequence[Input], job: Job, *, workers: int
) -> Outcome:
    """Predict pictures with Ray Data, on the cluster that this process has joined.

    Checkpoint, pictures and outputs lie on a disk that all machines mount under one path. The JSON files say
    which checkpoint and options made them, as on one machine.

    Args:
        source: of the checkpoint, as in `Predictor.load`.
        options: the other arguments of `Predictor.load`.
        pictures: from `find_inputs`.
        job: where and what to write.
        workers: how many predictors; each has a GPU if `options` asks for CUDA.

    Raises:
        KilosegError: what a worker met, as on one machine.
    """
    import ray

    todo = [one for one in pictures if not (job.skip_existing and job.is_done(one))]
    outcome = Outcome(skipped=len(pictures) - len(todo))
    if not todo:
        return outcome
    job = dataclasses.replace(job, out=job.out.resolve(), skip_existing=False)
    rows = [{"path": str(one.path), "name": one.name} for one in todo]
    batch = max(_FILES, options["views"].batch_size)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    done = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // batch)).map_batches(
        Worker,
        fn_constructor_args=(source, dict(options), job, str(Path.cwd()), os.environ.get(_STORE, "")),
        batch_size=batch,
        compute=ray.data.ActorPoolStrategy(size=min(workers, -(-len(rows) // batch))),
        num_gpus=1 if str(options["device"]).startswith("cuda") else 0,
    )
    with Progress("predict", len(pictures), start=outcome.skipped) as progress:
        for row in done.iter_rows():
            failed = [_rebuilt(fields) for fields in json.loads(row["failed"])]
            for problem in failed:
                if not isinstance(problem, DataError):
                    raise problem
                print(f"warning: {problem}", file=sys.stderr, flush=True)
                outcome.failed.append(problem)
            outcome.written += row["written"]
            progress.advance(steps=row["written"] + len(failed))
    return outcome


class Worker:
    """A predictor in a process of the cluster, which predicts batches of paths."""

    def __init__(self, source: str, options: dict[str, Any], job: Job, folder: str, store: str) -> None:
        os.chdir(folder)  # relative paths are those of the command
        if store:
            os.environ[_STORE] = store
        set_threads(1)
        self.predictor, self.job = Predictor.load(source, **options), job

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Predict a batch.

        Args:
            batch: columns "path" and "name".

        Returns:
            One row: how many were written, and what went wrong, as JSON.
        """
        paths, names = batch["path"], batch["name"]
        pictures = [Input(Path(str(path)), str(name)) for path, name in zip(paths, names, strict=True)]
        try:
            outcome = predict_files(self.predictor, pictures, self.job)
            written, failed = outcome.written, [_fields(problem) for problem in outcome.failed]
        except KilosegError as problem:  # Ray would wrap it in an error of its own
            written, failed = 0, [_fields(problem)]
        return {"written": [written], "failed": [json.dumps(failed)]}


_KINDS = {kind.__name__: kind for kind in KilosegError.__subclasses__()}


def _fields(problem: KilosegError) -> dict[str, str | None]:
    parts = {name: getattr(problem, name) for name in ("what", "where", "found", "allowed", "hint")}
    return {"kind": type(problem).__name__, **parts}


def _rebuilt(fields: dict[str, Any]) -> KilosegError:
    kind = _KINDS.get(fields.pop("kind"), KilosegError)
    return kind(fields.pop("what"), **fields)
