"""Put a trained network into MLflow's model registry, ready to be served."""

from __future__ import annotations

import base64
import contextlib
import importlib.metadata
import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelStatus
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from PIL import Image

from pipeline.checkpoint.format import Checkpoint, load_checkpoint
from pipeline.config.schema import Settings
from pipeline.runtime.errors import UsageError
from pipeline.runtime.files import file_digest
from pipeline.tracking.mlflow_model import DIGEST, model_of_run
from pipeline.tracking.mlflow_run import is_active
from pipeline.tracking.mlflow_store import STORE_ERRORS, experiment_id, explain, open_client
from pipeline.tracking.tracker import tracking_uri

_STORE = "MLFLOW_TRACKING_URI"
_NAME = re.compile(r"[^/:]+")
_ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
SERVED_MODEL = Path(__file__).with_name("served_model.py")
_REQUIRED = ("kiloseg-pipeline", "torch", "timm", "mlflow")


@dataclass(frozen=True)
class Registered:
    """Name a version of a registered model.

    Attributes:
        name: of the registered model.
        version: 1, 2, ...
        uri: what `mlflow models serve -m` and `Predictor.load` take.
        run_id: of the training; None if the store has no such run.
    """

    name: str
    version: int
    uri: str
    run_id: str | None


def register(settings: Settings, path: Path, name: str, alias: str | None = None) -> Registered:
    """Register a checkpoint as the next version of a model.

    The version holds the checkpoint, the code that serves it and an example; nothing in it is a pickle. It is
    tied to the run that trained it, if the store has that.

    Args:
        settings: name the store and the experiment.
        path: of the checkpoint.
        name: of the registered model.
        alias: moved to this version, as "champion".

    Raises:
        DataError: no checkpoint, or a damaged one.
        UsageError: a name or an alias that MLflow does not take.
        KilosegError: the store refuses or does not answer.
    """
    _check_names(name, alias)
    checkpoint = load_checkpoint(path)
    client = open_client(settings)
    try:
        run_id = checkpoint.progress.get("run_id")
        if run_id is not None and not is_active(client, run_id):
            run_id = None
        with _logging_to(tracking_uri(settings)):
            version = _log(client, settings, path, checkpoint, name, run_id)
        if alias is not None:
            client.set_registered_model_alias(name, alias, str(version))
    except STORE_ERRORS as error:
        raise explain(settings, error) from error
    uri = f"models:/{name}@{alias}" if alias else f"models:/{name}/{version}"
    return Registered(name, version, uri, run_id)


@contextlib.contextmanager
def _logging_to(uri: str) -> Iterator[None]:
    """Make a store the one of MLflow's functions that take no client, in the block alone."""
    before = os.environ.get(_STORE)  # MLflow keeps what it was told there too
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # forgets it, and the variable
        if before is not None:
            os.environ[_STORE] = before


def _check_names(name: str, alias: str | None) -> None:
    if not _NAME.fullmatch(name.strip()) or name != name.strip():
        raise UsageError(
            "MLflow takes no such name of a model", where="--name", found=name, allowed="no / and no :"
        )
    if alias is not None and (not _ALIAS.fullmatch(alias) or re.fullmatch(r"v\d+|latest", alias)):
        raise UsageError(
            "MLflow takes no such alias",
            where="--alias",
            found=alias,
            allowed="letters, digits, - and _, as in champion; not latest and not v1",
        )


def _log(
    client: MlflowClient,
    settings: Settings,
    path: Path,
    checkpoint: Checkpoint,
    name: str,
    run_id: str | None,
) -> int:
    """Log the servable files and register them; return the version."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    model = _logged_model(client, settings, path, checkpoint, run_id)
    logged = mlflow.pyfunc.log_model(
        model_id=model.model_id,
        name=model.name,
        python_model=str(SERVED_MODEL),
        artifacts={"checkpoint": str(path)},
        signature=_signature(),
        input_example=(_example(), {"min_confidence": 0.5}),
        pip_requirements=[f"{one}=={importlib.metadata.version(one)}" for one in _REQUIRED],
        registered_model_name=name,
    )
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    return int(logged.registered_model_version)


def _logged_model(
    client: MlflowClient, settings: Settings, path: Path, checkpoint: Checkpoint, run_id: str | None
) -> LoggedModel:
    """Return the model that evaluation logged for this file, which then gets its files; or a new one."""
    digest = file_digest(path)
    if run_id is not None:
        known = model_of_run(client, client.get_run(run_id).info.experiment_id, run_id, digest)
        if known is not None:
            return known
    return client.create_logged_model(
        experiment_id(client, settings),
        name=settings.variant or path.parent.name,
        source_run_id=run_id,
        tags={DIGEST: digest, "path": str(path)},
        params={"num_classes": str(checkpoint.label_space.num_classes)},
        model_type="semantic-segmentation",
    )


def _signature() -> ModelSignature:
    text = DataType.string
    return ModelSignature(
        inputs=Schema([ColSpec(text, "image")]),
        outputs=Schema([ColSpec(text, "class_map"), ColSpec(text, "classes")]),
        params=ParamSchema(
            [
                ParamSpec("classes", text, ""),
                ParamSpec("min_confidence", DataType.double, 0.0),
                ParamSpec("window", DataType.long, 0),
            ]
        ),
    )


def _example() -> pd.DataFrame:
    """Return a request of one small gray picture."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), (128, 128, 128)).save(buffer, format="PNG")
    return pd.DataFrame({"image": [base64.b64encode(buffer.getvalue()).decode("ascii")]})
