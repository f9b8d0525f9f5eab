"""The report in a real browser, at the width of a telephone and of a desk, without a network."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.paths import ROOT
from tests.pipeline.report.test_build import Place, make_record

in_a_browser = [
    pytest.mark.process,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed"),
]


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = Place(tmp_path_factory.mktemp("report"))
    place.write(make_record("exact"))
    place.write(make_record("softmax", miou=0.31))
    place.write_data()
    step = {"num_classes": 7, "images_per_step": 6, "crop_size": 48, "predicted_gib": 0.5}
    rows = [{"head": "dense", "num_classes": c, "predicted_gib": c / 50} for c in (19, 1284)]
    variants = [{"variant": name, **step} for name in ("exact", "softmax")]
    place.results.mkdir()
    memory = {"unit": "GiB", "rows": rows, "variants": variants}
    (place.results / "memory.json").write_text(json.dumps(memory))
    place.report()
    return place.out


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        yield opened
        opened.close()


class Opened:
    """A page of a file, what it said on the console, and what it asked for from outside."""

    def __init__(self, browser: Any, path: Path, width: int) -> None:
        self.width = width
        self.context = browser.new_context(viewport={"width": width, "height": 800}, offline=True)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())
        # charts move what is below them; a test that scrolls or hovers before they are drawn misses it
        self.page.wait_for_function("!document.querySelector('[data-chart]:not([data-drawn])')")

    def check_quiet(self) -> None:
        assert self.said == []
        assert [one for one in self.asked if not one.startswith(("file:", "data:", "blob:"))] == []


@pytest.fixture(scope="module", params=[375, 1280])
def opened(request: pytest.FixtureRequest, page_file: Path, browser: Any) -> Iterator[Opened]:
    """The page in a window of each width, for all tests: drawing all of it takes seconds."""
    opened = Opened(browser, page_file, request.param)
    yield opened
    opened.context.close()


class TestThePage:
    pytestmark = in_a_browser

    def test_the_table_sorts_and_filters(self, opened: Opened) -> None:
        """Read `textContent`: `innerText` is empty while the browser skips a table outside the window."""
        page = opened.page
        rows = page.locator("#all-classes tbody tr:visible th")
        assert rows.all_text_contents()[:2] == ["grass", "<b>"]
        by_iou = page.get_by_role("button", name="softmax")
        by_iou.click()
        assert rows.all_text_contents()[:3] == ["grass", "<b>", "cat & dog"]
        by_iou.click()
        assert rows.all_text_contents()[-1] == "grass"
        page.get_by_role("button", name="class", exact=True).click()
        assert rows.all_text_contents()[0] == "umlaut ä"
        page.get_by_label("Find a class or group").fill("COMMON")
        assert sorted(rows.all_text_contents()) == ["cat & dog", "umlaut ä"]
        assert page.locator("#class-count").text_content() == "2 of 6"
        page.get_by_label("Find a class or group").fill("")
        assert rows.count() == 6
        assert (
            page.evaluate("document.documentElement.scrollWidth") <= opened.width
        )  # nothing sticks out sideways
        opened.check_quiet()

    def test_charts_are_drawn_and_told_in_words(self, opened: Opened) -> None:
        page = opened.page
        charts = page.locator("[data-chart] svg")
        assert charts.count() == page.locator("[data-chart]").count() == 8
        boxes = [box for chart in charts.all() if (box := chart.bounding_box())]
        assert all(60 < box["width"] <= opened.width and box["height"] > 60 for box in boxes)
        described = page.locator("[data-chart][role='graphics-document'][aria-label]")
        assert len({one.get_attribute("aria-label") for one in described.all()}) == 8
        point = page.locator("[data-chart=accuracy] .mark-symbol path").first
        point.hover()
        assert "mIoU: 43.00%" in page.locator("#tip").inner_text()
        opened.check_quiet()

    def test_the_gallery_switches_names_and_counts(self, opened: Opened) -> None:
        page, gallery = opened.page, opened.page.locator("#gallery")
        page.wait_for_selector("#gallery[data-shown='random 0']")
        assert gallery.locator("h3").all_inner_texts() == [
            "image 7 exact: 82.50 % of the labeled pixels right"
        ]
        page.get_by_label("worst").check()
        page.get_by_label("softmax", exact=True).check()
        page.wait_for_selector("#gallery[data-shown='worst 1']")
        assert gallery.locator("figcaption").all_inner_texts() == [
            "image 8",
            "truth",
            "softmax",
            "errors of softmax",
        ]
        prediction = gallery.locator("canvas[data-kind=prediction]")
        assert prediction.get_attribute("aria-label") == "Prediction of softmax for image 8: grass, sky"
        box = prediction.bounding_box()
        prediction.hover(position={"x": box["width"] / 2, "y": box["height"] * 0.1})  # a row called grass
        assert page.locator("#tip").inner_text() == "truth: sky\nsoftmax: grass"
        prediction.hover(position={"x": box["width"] * 0.99, "y": box["height"] / 2})
        assert page.locator("#tip").inner_text() == "unlabeled"
        color = "(kind) => document.querySelector(`canvas[data-kind=${kind}]`).getContext('2d')"
        color = f"{color}.getImageData(9, 2, 1, 1).data.join()"
        truth, predicted, error = (page.evaluate(color, kind) for kind in ("truth", "prediction", "errors"))
        assert truth != predicted == error
        gallery.get_by_role("button", name="sky").click()
        numbers = gallery.locator(".class-numbers").inner_text()
        assert "sky (stuff, 90 true pixels in val)" in numbers
        assert re.search(r"softmax\s+0.00 %\s+60.00 %\s+960\s+576", numbers)
        page.locator("#all-classes a", has_text="3").first.click()  # an image of another kind
        page.wait_for_selector("#gallery[data-shown='best 1']")
        assert page.locator("#image-3").is_visible()
        opened.check_quiet()


def luminance(color: str) -> float:
    parts = (int(color[start : start + 2], 16) / 255 for start in (1, 3, 5))
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_and_lines_stand_out_on_light_and_dark_pages() -> None:
    """At least 4.5 : 1 for text and 3 : 1 for what is drawn, as WCAG asks."""
    css = (ROOT / "pipeline" / "report" / "report.css").read_text(encoding="utf-8")
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#\w{6})", part)) for part in css.split("prefers-color-scheme")[:2]
    )
    assert set(light) == set(dark)
    for colors in (light, dark):
        for name, color in colors.items():
            least = 4.5 if name in ("ink", "soft", "good") else 3 if name.startswith("series") else 0
            for ground in ("ground", "card"):
                one, other = sorted((luminance(color), luminance(colors[ground])))
                assert least == 0 or (other + 0.05) / (one + 0.05) >= least, (name, ground)
