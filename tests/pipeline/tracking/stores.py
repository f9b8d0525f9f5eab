"""Stores for tests: MLflow's own web application, on a socket that may go away and come back.

It is imported when a store is made: collecting tests would take seconds longer in each worker.
"""

from __future__ import annotations

import contextlib
import io
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from werkzeug.serving import make_server


def free_port() -> int:
    """A port of 127.0.0.1 on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Store:
    """MLflow's own web application over the store in a folder."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from mlflow.server import app, handlers
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        store = SqlAlchemyStore(f"sqlite:///{folder / 'mlflow.db'}", str(folder / "mlartifacts"))
        monkeypatch.setattr(handlers, "_tracking_store", store)
        self._mlflow = app
        self.curves_came, self.port = threading.Event(), free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.status = ""
        """instead of MLflow's answer, if not empty: for example "500 broken" """

    def application(self, environ: Any, start_response: Any) -> Any:
        """MLflow's, which notes that a part of a curve was sent."""
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        if self.status:
            start_response(self.status, [("Content-Type", "text/plain")])
            return [b"no"]
        answer = self._mlflow(environ, start_response)
        if b'"train/loss"' in body:
            self.curves_came.set()
        return answer

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Listen until the end of the block."""
        server = make_server("127.0.0.1", self.port, self.application, threaded=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
            server.server_close()
