"""The report in a real browser, at the width of a telephone and of a desk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipeline.report.test_build import Place, make_record

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed"),
]


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = Place(tmp_path_factory.mktemp("report"))
    place.write(make_record("exact"))
    place.write(make_record("softmax", miou=0.31))
    place.write_data()
    place.report()
    return place.out


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        yield opened
        opened.close()


@pytest.mark.parametrize("width", [375, 1280])
def test_the_table_sorts_and_filters_without_an_error(page_file: Path, browser: object, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800})  # type: ignore[attr-defined]
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(page_file.as_uri())
    rows = page.locator("#all-classes tbody tr:visible th")
    assert rows.all_inner_texts()[:2] == ["grass", "<b>"]
    by_iou = page.get_by_role("button", name="softmax")
    by_iou.click()
    assert rows.all_inner_texts()[:3] == ["grass", "<b>", "cat & dog"]
    by_iou.click()
    assert rows.all_inner_texts()[-1] == "grass"
    page.get_by_role("button", name="class", exact=True).click()
    assert rows.all_inner_texts()[0] == "umlaut ä"
    page.get_by_label("Find a class or group").fill("COMMON")
    assert sorted(rows.all_inner_texts()) == ["cat & dog", "umlaut ä"]
    assert page.locator("#class-count").inner_text() == "2 of 6"
    assert page.evaluate("document.documentElement.scrollWidth") <= width  # nothing sticks out sideways
    page.close()
    assert said == []
    assert [one for one in asked if not one.startswith(("file:", "data:"))] == []
