"""Log a trained network as an MLflow model that points to its file, which DVC keeps."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Metric
from mlflow.models.model import MLMODEL_FILE_NAME
from mlflow.models.utils import get_external_mlflow_model_spec

from pipeline.tracking.journal import milliseconds

DIGEST = "sha256"
_EXTERNAL = "mlflow.model.isExternal"  # MLflow's mark of a model whose files are elsewhere


def send_model(client: MlflowClient, run_id: str, fields: Mapping[str, Any]) -> None:
    """Log a run's model, once for each content of its file, with the metrics that it earned.

    Args:
        client: of the store.
        run_id: of the run that trained it.
        fields: "name", "step", "tags" (with the file's "sha256"), "params" and "metrics", which become those
            of the model and of the run.

    Raises:
        MlflowException, RequestException, OSError: the store does not answer; call again later.
    """
    experiment = client.get_run(run_id).info.experiment_id
    model = model_of_run(client, experiment, run_id, fields["tags"][DIGEST])
    if model is None:
        model = _create(client, experiment, run_id, fields)
    known = {metric.key: metric.value for metric in model.metrics or []}
    metrics = [
        Metric(name, value, milliseconds(), fields["step"], model_id=model.model_id, run_id=run_id)
        for name, value in fields["metrics"].items()
        if known.get(name) != value
    ]
    if metrics:
        client.log_batch(run_id, metrics=metrics)


def model_of_run(client: MlflowClient, experiment: str, run_id: str, digest: str) -> LoggedModel | None:
    """Return the finished model of this content that a run has, or None."""
    found = client.search_logged_models([experiment], filter_string=f"tags.{DIGEST} = '{digest}'")
    ready = [one for one in found if one.source_run_id == run_id and one.status == LoggedModelStatus.READY]
    return ready[0] if ready else None


def _create(client: MlflowClient, experiment: str, run_id: str, fields: Mapping[str, Any]) -> LoggedModel:
    tags = {**fields["tags"], _EXTERNAL: "true"}
    model = client.create_logged_model(
        experiment,
        name=fields["name"],
        source_run_id=run_id,
        tags=tags,
        params=dict(fields["params"]),
        model_type="semantic-segmentation",
    )
    with tempfile.TemporaryDirectory() as folder:  # what makes it a model for the registry and the UI
        get_external_mlflow_model_spec(model).save(str(Path(folder) / MLMODEL_FILE_NAME))
        client.log_model_artifacts(model.model_id, folder)
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, fields["step"])])
    return client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
