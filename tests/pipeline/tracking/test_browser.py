"""A page is opened in the browser once its server answers: a real server, and a browser that writes down."""

from __future__ import annotations

import socket
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.tracking.browser import open_when_answered, wait_and_open


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file to which the browser writes the addresses that it is given."""
    written, browser = tmp_path / "opened", tmp_path / "browser"
    browser.write_text(f"#!{sys.executable}\nimport sys\nopen({str(written)!r}, 'a').write(sys.argv[1])\n")
    browser.chmod(0o755)
    monkeypatch.setenv("BROWSER", str(browser))
    return written


@pytest.mark.process
def test_the_page_is_opened_when_the_server_is_there(opened: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/#/runs?a=1&b=2"
        open_when_answered(address)
        end = time.monotonic() + 30
        while not opened.exists() or not opened.read_text():
            assert time.monotonic() < end
            time.sleep(0.05)
    assert opened.read_text() == address


def test_it_waits_for_the_server_and_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    pages: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: pages.append(address) or True)
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))  # taken, and not listening yet
        address = f"http://127.0.0.1:{place.getsockname()[1]}/page"
        assert not wait_and_open(address, seconds=0.3)
        assert pages == []
        later = threading.Timer(0.3, place.listen)
        later.start()
        assert wait_and_open(address, seconds=20)
        later.join()
    assert pages == [address]
