"""The page's server: who may ask, what is refused, and the command's errors."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from pipeline.demo import app as module
from pipeline.demo.app import make_app
from pipeline.demo.exchange import pack, unpack
from pipeline.demo.serve import allowed_hosts, open_port
from pipeline.inference.predictor import Predictor
from tests.command import pipeline_here
from tests.pipeline.demo.test_exchange import png
from tests.pipeline.inference.conftest import photo

BODY = {"Content-Type": "application/octet-stream"}


@pytest.fixture
def client(predictor: Predictor) -> TestClient:
    app = make_app(predictor, allowed_hosts("127.0.0.1"))
    return TestClient(app, base_url="http://127.0.0.1:7860")


def test_the_page_and_its_files_name_nothing_outside(client: TestClient) -> None:
    page = client.get("/")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    names = re.findall(r'(?:src|href)="([^":]+)"', page.text)
    assert sorted(names) == ["page.css", "page.js"]
    for name in (*names, "picture.js"):
        answer = client.get(f"/{name}")
        assert answer.status_code == 200
        assert "://" not in answer.text
    assert client.get("/serve.py").status_code == 404


def test_a_picture_is_answered_and_mistakes_have_their_message(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = client.post("/predict", content=pack({}, png(photo(9, 12))), headers=BODY)
    assert (good.status_code, unpack(good.content)[0]["width"]) == (200, 12)
    foreign = client.post("/predict", content=pack({"name": "notes.txt"}, b"hello"), headers=BODY)
    assert foreign.status_code == 422
    assert "notes.txt" in foreign.json()["error"]
    monkeypatch.setattr(module, "LARGEST_REQUEST", 1000)
    large = client.post("/predict", content=bytes(1001), headers=BODY)
    assert (large.status_code, "too large" in large.json()["error"]) == (422, True)


def test_requests_of_other_websites_are_refused(client: TestClient) -> None:
    """A browser sends other types only after asking; a name that was pointed here later is another host."""
    body = pack({}, png(photo(9, 12)))
    assert client.post("/predict", content=body, headers={"Content-Type": "text/plain"}).status_code == 415
    asked = client.options("/predict", headers={"Origin": "http://else.example"})
    assert "access-control-allow-origin" not in asked.headers
    assert client.get("/classes", headers={"Host": "else.example"}).status_code == 400
    assert client.get("/classes", headers={"Host": "localhost:7860"}).status_code == 200


def test_the_commands_mistakes_are_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with open_port("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        for arguments, code, said in (
            (["--port", "0"], 3, "no trained variant"),
            (["--port", "0", "--checkpoint", "none.safetensors"], 3, "no checkpoint"),
            (["--port", port], 1, "the port is taken"),
            (["--host", "192.0.2.1"], 2, "not an address of this machine"),
            (["--port", "70000"], 2, "65535"),
        ):
            assert pipeline_here("demo", *arguments) == code
            message = capfd.readouterr().err
            assert said in message
            assert "Traceback" not in message
    monkeypatch.setattr("pipeline.demo.serve.importlib.util.find_spec", lambda name: None)
    assert pipeline_here("demo") == 1
    assert "kiloseg-pipeline[demo]" in capfd.readouterr().err


def test_a_port_is_free_again_at_once() -> None:
    with open_port("127.0.0.1", 0) as first:
        place = first.getsockname()
        with socket.create_connection(place):
            first.accept()[0].close()
    open_port(*place).close()
