"""The page in a real browser, at 1,284 classes."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from PIL import Image

from pipeline.demo.app import make_app
from pipeline.demo.serve import address, allowed_hosts, open_port
from pipeline.inference.predictor import Predictor
from tests.pipeline.inference.conftest import photo

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed"),
]


@pytest.fixture
def server(predictor: Predictor) -> Iterator[str]:
    """The server that `pipeline demo` starts, in a thread."""
    with open_port("127.0.0.1", 0) as listening:
        app = make_app(predictor, allowed_hosts("127.0.0.1"))
        running = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", ws="none"))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
        thread.start()
        yield address(listening)
        running.should_exit = True
        thread.join()


@pytest.fixture
def page(server: str) -> Iterator[object]:
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        page = browser.new_page(viewport={"width": 1100, "height": 900})
        page.set_default_timeout(20_000)
        yield page
        browser.close()


def test_a_photograph_is_dropped_pointed_at_and_asked_for_some_classes(
    page, server: str, predictor: Predictor, tmp_path: Path
) -> None:
    from playwright.sync_api import expect  # waits without a script, which the page's policy refuses

    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    pixels = photo(300, 400)
    Image.fromarray(pixels).save(tmp_path / "street.png")
    names = predictor.label_space.names
    expected = predictor(pixels)
    state, found = page.locator("#state"), page.locator("#found .name")

    page.goto(server)
    page.get_by_text("1,284 of 1,284 classes").wait_for()
    page.set_input_files("#file", tmp_path / "street.png")
    expect(state).to_have_text(f"{len(expected.classes)} classes found", timeout=20_000)
    expect(found).to_have_text([one.name for one in expected.classes], timeout=20_000)

    # the canvas shows photograph and colors half and half, as the overlay of pipeline predict
    canvas = page.evaluate(
        "[...document.getElementById('picture').getContext('2d').getImageData(0, 0, 400, 300).data]"
    )
    drawn = np.array(canvas).reshape(300, 400, 4)[..., :3]
    overlay = np.asarray(expected.overlay(names=False)).astype(int)
    assert np.abs(drawn - overlay).mean() < 6  # the photograph comes as a JPEG

    box = page.locator("#picture").bounding_box()
    for row, column in ((10, 20), (250, 390)):
        page.mouse.move(
            box["x"] + (column + 0.5) * box["width"] / 400, box["y"] + (row + 0.5) * box["height"] / 300
        )
        class_id = int(expected.class_map[row, column])
        text = page.locator("#pointed").inner_text()
        assert text.startswith(f"{names[class_id - 1]} ({class_id}) ")
        assert float(text.split()[-2]) / 100 == pytest.approx(
            float(expected.confidence[row, column]), abs=0.006
        )

    page.get_by_label("Find a class").fill("ZEBRA")
    page.get_by_text("1 of 1,284 classes").wait_for()
    page.get_by_label("Find a class").fill("1284")
    page.locator("#names input").check()
    expect(state).to_have_text("1 classes found", timeout=20_000)
    page.get_by_label("Find a class").fill("zebra")
    page.locator("#names input").check()
    two = predictor.searching(["zebra", 1284])(pixels)
    expect(found).to_have_text([one.name for one in two.classes], timeout=20_000)
    page.get_by_role("button", name="Search all classes").click()
    expect(state).to_have_text(f"{len(expected.classes)} classes found", timeout=20_000)

    page.set_viewport_size({"width": 375, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 375  # nothing sticks out sideways
    assert said == []
    (tmp_path / "notes.txt").write_text("hello")
    page.set_input_files("#file", tmp_path / "notes.txt")
    page.get_by_role("alert").wait_for()
    assert "notes.txt" in page.get_by_role("alert").inner_text()
    assert [text for text in said if "422" not in text] == []  # the browser notes the refusal
    assert [one for one in asked if not one.startswith((server, "data:", "blob:"))] == []
