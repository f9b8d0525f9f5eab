"""Tell where a trained network comes from and where it went: file, run, commit, data, versions."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from mlflow import MlflowClient
from mlflow.entities import LoggedModel
from mlflow.entities.model_registry import ModelVersion

from pipeline.checkpoint.format import load_checkpoint
from pipeline.config.schema import Settings
from pipeline.inference.locate import located
from pipeline.runtime.errors import DataError, UsageError
from pipeline.runtime.files import file_digest
from pipeline.tracking.mlflow_model import DIGEST
from pipeline.tracking.mlflow_run import is_missing
from pipeline.tracking.mlflow_store import STORE_ERRORS, explain, open_client


@dataclass(frozen=True)
class Lineage:
    """Hold the chain of a trained network; what is not known is empty.

    Attributes:
        checkpoint: the file, as it was found or logged.
        sha256: of its content.
        run_id: MLflow's, of the training.
        experiment: of the run.
        git_commit: of the project when it was trained.
        dvc_lock: digest of dvc.lock then.
        dvc_output: the file's digest in today's dvc.lock.
        data: digests of the bootstrapped data, by split.
        model_id: MLflow's, of the logged model.
        versions: registered versions, as NAME/VERSION, with their aliases.
    """

    checkpoint: str = ""
    sha256: str = ""
    run_id: str = ""
    experiment: str = ""
    git_commit: str = ""
    dvc_lock: str = ""
    dvc_output: str = ""
    data: dict[str, str] = field(default_factory=dict)
    model_id: str = ""
    versions: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return the chain as lines of text."""
        data = "; ".join(f"{name}: {digest}" for name, digest in self.data.items())
        rows = {
            "checkpoint": self.checkpoint,
            "sha256": self.sha256,
            "in dvc.lock": self.dvc_output,
            "run": f"runs:/{self.run_id}" if self.run_id else "",
            "experiment": self.experiment,
            "git commit": self.git_commit,
            "dvc.lock then": self.dvc_lock,
            "data": data,
            "logged model": f"models:/{self.model_id}" if self.model_id else "",
            "registered": ", ".join(self.versions),
        }
        return [f"{name:14} {value or '-'}" for name, value in rows.items()]


def lineage(settings: Settings, source: str) -> Lineage:
    """Return the chain of a checkpoint, a run or a model.

    Args:
        settings: name the store and the project.
        source: a checkpoint's file or folder, "runs:/ID" (or the id), "models:/NAME@ALIAS",
            "models:/NAME/VERSION" or "models:/MODEL_ID".

    Raises:
        DataError: no such checkpoint, run or model.
        UsageError: `source` is none of these.
        KilosegError: the store refuses or does not answer.
    """
    client = open_client(settings)
    try:
        if source.startswith("models:/"):
            return _of_model(client, settings, source)
        if Path(source).exists():
            with located(source) as path:
                return _of_checkpoint(client, settings, path)
        run_id = source.removeprefix("runs:/")
        if source.startswith("runs:/") or (len(run_id) == 32 and run_id.isalnum()):
            return _of_run(client, settings, run_id)
    except STORE_ERRORS as error:
        if is_missing(error):
            found = str(error).partition("\n")[0]
            raise DataError("not in the MLflow store", where=source, found=found) from error
        raise explain(settings, error) from error
    raise UsageError(
        "neither a checkpoint nor a run nor a model",
        found=source,
        allowed="a checkpoint's file or folder, runs:/ID, models:/NAME@ALIAS, models:/NAME/VERSION",
    )


def _of_checkpoint(client: MlflowClient, settings: Settings, path: Path) -> Lineage:
    run_id = load_checkpoint(path, header_only=True).progress.get("run_id")
    return _chain(client, settings, str(path), file_digest(path), run_id)


def _of_run(client: MlflowClient, settings: Settings, run_id: str) -> Lineage:
    run = client.get_run(run_id)
    models = [one for one in _models(client, run.info.experiment_id) if one.source_run_id == run_id]
    latest = max(models, key=lambda one: one.creation_timestamp, default=None)
    digest = "" if latest is None else latest.tags.get(DIGEST, "")
    return _chain(client, settings, "" if latest is None else latest.tags.get("path", ""), digest, run_id)


def _of_model(client: MlflowClient, settings: Settings, source: str) -> Lineage:
    name = source.removeprefix("models:/")
    if "@" in name:
        model_id = _model_id(client.get_model_version_by_alias(*name.split("@", 1)))
    elif "/" in name:
        model_id = _model_id(client.get_model_version(*name.split("/", 1)))
    else:
        model_id = name
    model = client.get_logged_model(model_id)
    return _chain(
        client, settings, model.tags.get("path", ""), model.tags.get(DIGEST, ""), model.source_run_id
    )


def _chain(
    client: MlflowClient, settings: Settings, checkpoint: str, digest: str, run_id: str | None
) -> Lineage:
    found = Lineage(checkpoint, digest, dvc_output=_dvc_digest(settings.project, checkpoint))
    if not run_id:
        return found
    run = client.get_run(run_id)
    experiment = run.info.experiment_id
    models = [
        one
        for one in _models(client, experiment)
        if one.source_run_id == run_id and one.tags.get(DIGEST) == digest
    ]
    return Lineage(
        checkpoint,
        digest,
        run_id,
        client.get_experiment(experiment).name,
        run.data.tags.get("git_commit", ""),
        run.data.tags.get("dvc_lock", ""),
        found.dvc_output,
        {one.dataset.name: one.dataset.digest for one in (run.inputs.dataset_inputs if run.inputs else [])},
        models[0].model_id if models else "",
        _versions(client, {one.model_id for one in models}),
    )


def _models(client: MlflowClient, experiment: str) -> list[LoggedModel]:
    found: list[LoggedModel] = []
    token = None
    while True:
        page = client.search_logged_models([experiment], page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _model_id(version: ModelVersion) -> str:
    """Return the logged model that was registered: the id is not in every store's answer, the source is."""
    return str(version.model_id or str(version.source).removeprefix("models:/"))


def _versions(client: MlflowClient, model_ids: set[str]) -> list[str]:
    found: list[str] = []
    for model in client.search_registered_models():
        aliases: dict[str, list[str]] = {}
        for alias, version in model.aliases.items():
            aliases.setdefault(str(version), []).append(alias)
        for version in client.search_model_versions(f"name = '{model.name}'"):
            if _model_id(version) in model_ids:
                names = "".join(f" @{alias}" for alias in sorted(aliases.get(str(version.version), [])))
                found.append(f"models:/{model.name}/{version.version}{names}")
    return sorted(found)


def _dvc_digest(project: Path, checkpoint: str) -> str:
    """Return the digest that dvc.lock has for the file, or nothing."""
    lock = project / "dvc.lock"
    if not checkpoint or not lock.is_file():
        return ""
    relative = Path(os.path.relpath(Path(checkpoint).absolute(), project.absolute())).as_posix()
    tree = yaml.safe_load(lock.read_text(encoding="utf-8")) or {}
    for stage in (tree.get("stages") or {}).values():
        for output in stage.get("outs") or []:
            if output.get("path") == relative:
                return f"{output.get('hash', 'md5')} {output.get('md5', '')}"
    return ""
