"""Run `pipeline ui` and `pipeline sync`: look at the runs, and send those that wait for their store."""

from __future__ import annotations

import os
import sys
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.runtime.errors import KilosegError
from pipeline.runtime.secrets import hide_secrets

if TYPE_CHECKING:
    from pipeline.config.schema import Settings

Params = Annotated[Path, typer.Option("--params", help="The settings file.", show_default=True)]
PARAMS = Path("params.yaml")
# MLflow's own defaults are for a server that many use: four workers, and eight processes that run jobs of
# language models, which no run of ours has
_FOR_ONE_USER = {"MLFLOW_WORKERS": "1", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def ui(
    params: Params = PARAMS,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 5000,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Open MLflow's comparison UI on the store that the runs went to."""
    from pipeline.config.load import load_settings
    from pipeline.config.paths import artifacts_folder
    from pipeline.tracking.browser import open_when_answered
    from pipeline.tracking.tracker import own_store, sqlite_path, tracking_uri

    settings = load_settings(params)
    uri = tracking_uri(settings)
    if uri.startswith(("http://", "https://")):
        address = hide_secrets(uri).rstrip("/") + _runs_address(settings)
        typer.echo(f"the runs are on the tracking server: open {address}")
        if open_browser:
            webbrowser.open(address)
        return
    store = sqlite_path(uri)
    if store is not None and not store.is_file():
        hint = "make some first: dvc repro (after dvc pull, which brings none: dvc repro --force)"
        raise KilosegError("no runs yet", where=store, hint=hint)
    typer.echo(f"MLflow UI on {hide_secrets(uri)} (Ctrl-C ends it): open")
    address = f"http://{host}:{port}{_runs_address(settings)}"
    typer.echo(address)
    if store is not None and own_store(settings):
        from pipeline.tracking.relocate import relocate_artifacts

        relocate_artifacts(uri, artifacts_folder(settings))
        os.chdir(store.parent)
        uri = f"sqlite:///{store.name}"  # MLflow's server misreads a path with a percent sign
    sys.stdout.flush()
    if open_browser:
        open_when_answered(address)
    command = [sys.executable, "-m", "mlflow", "ui", "--host", host, "--port", str(port)]
    # not an option: everybody on the machine sees those, and an address may hold a password
    os.execve(sys.executable, command, {**_FOR_ONE_USER, **os.environ, "MLFLOW_BACKEND_STORE_URI": uri})


def _runs_address(settings: Settings) -> str:
    """Return the part of the address that opens the runs in the shipped view; nothing if there are none."""
    from pipeline.tracking.mlflow_store import STORE_ERRORS, experiment_id, open_client
    from pipeline.tracking.saved_view import runs_address

    try:
        client = open_client(settings)
        if client.get_experiment_by_name(settings.tracking.experiment) is None:
            return ""
        return runs_address(experiment_id(client, settings))
    except (KilosegError, *STORE_ERRORS):
        return ""  # MLflow itself says what is wrong


def sync(params: Params = PARAMS) -> None:
    """Send to MLflow what was tracked while its store was away: trainings, evaluations and sweeps."""
    from pipeline.config.load import load_settings
    from pipeline.tracking.delivery import send_unsent
    from pipeline.tuning.finish import is_unsent
    from pipeline.tuning.sweep import Sweep, sweep_names
    from pipeline.tuning.watchdog import send_results

    settings = load_settings(params)
    sent, others = send_unsent(settings, patience=10.0, slow=300.0)
    waiting = [Sweep(settings.tune.folder / name) for name in sweep_names(settings.tune.folder)]
    for sweep in waiting:
        if is_unsent(sweep):
            sent += send_results(sweep.folder)
    typer.echo(f"sent: {sent}" if sent else "nothing waits for this store")
    if others:
        raise KilosegError(
            "runs wait for another store",
            where=", ".join(others),
            hint="set MLFLOW_TRACKING_URI to it (unset it for the project's own) and run it again",
        )
