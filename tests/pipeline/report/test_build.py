"""The report page, made from files as the stages leave them."""

from __future__ import annotations

import base64
import copy
import csv
import html.parser
import io
import json
import math
import re
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.config.load import load_settings
from pipeline.data.loading.palette import picture_colors
from pipeline.evaluation.metrics import ClassCounts, summarize
from pipeline.evaluation.per_image import PerImage
from pipeline.evaluation.picture_file import writing_pictures
from pipeline.report import build, labels
from pipeline.report.build import write_comparison, write_report
from pipeline.report.tables import MEASURES
from pipeline.runtime.errors import DataError, UsageError
from tests.paths import ROOT

CLASSES = [  # name, source, frequency, true pixels, predicted pixels, IoU
    ("<b>", "lvis", "f", 500, 400, 0.75),
    ("cat & dog", "lvis", "c", 300, 300, 0.5),
    ("umlaut ä", "lvis", "c", 40, 0, 0.0),
    ("never there", "lvis", "r", 0, 0, None),
    ("only predicted", "lvis", "r", 0, 50, 0.0),
    ("grass", "stuff", "stuff", 900, 1000, 0.9),
    ("sky", "stuff", "stuff", 90, 10, 0.0),
]
VEGA_LITE = "https://vega.github.io/schema/vega-lite/v6.json"
CONFUSED = (
    "class_id,name,predicted_id,predicted_name,pixels,share\n"
    "7,sky,6,grass,80,0.8888\n"
    "3,umlaut ä,1,<b>,40,1.0\n"
)
CLASS_MAP = "class_id,x,y\n" + "".join(f"{one},{one / 10},{-one}\n" for one in range(1, 8))
CALIBRATION = "confidence_from,confidence_to,pixels,confidence,accuracy\n0.5,0.6,100,0.55,0.5\n"
METRICS = {
    "miou": 0.43,
    "miou_present": 0.5375,
    "miou_frequent": 0.75,
    "miou_common": 0.25,
    "miou_stuff": 0.45,
    "pixel_accuracy": 0.8,
    "mean_accuracy": 0.5,
    "classes_present": 5,
    "classes_predicted": 6,
    "images": 4,
    "images_per_second": 12.345,
    "peak_memory_gib": 0.912,
    "train_peak_memory_gib": 1.5,
    "train_seconds": 61.5,
}


def make_record(name: str, **metrics: float | None) -> dict[str, Any]:
    return {
        "format": 1,
        "variant": name,
        "metrics": {**METRICS, **metrics},
        "settings": {
            "loss.name": name,
            "train.steps": 400,
            "model.weights": None,
            "evaluate.examples": 1,
        },
        "training": {
            "steps": 400,
            "seconds": 61.5,
            "best_step": 300,
            "best_holdout_miou": 0.4,
            "peak_memory_gib": 1.5,
            "peak_memory_kind": "process_resident",
            "device": "cpu",
            "loss_curve": [[step, 5 / (1 + step)] for step in range(1, 401)],
            "validation_curve": [[200, 0.3, 0.7], [400, 0.4, 0.75]],
        },
        "environment": {"python": "3.11.7", "torch": "2.15.0", "device": "x86_64 CPU", "threads": 2},
        "num_classes": len(CLASSES),
        "parameters": 5_400_000,
        "run_id": None,
        "pictures": [7, 3, 8],
    }


def truth_and_prediction(image_id: int) -> tuple[np.ndarray, np.ndarray]:
    """40 x 50 class ids: grass (6) everywhere, sky (7) on top of which `image_id` rows are called grass."""
    truth = np.full((40, 50), 6)
    truth[:20], truth[:, 48:] = 7, 0
    prediction = truth.copy()
    prediction[:image_id, :48] = 6
    return truth, prediction


def write_pictures(folder: Path, image_ids: list[int]) -> None:
    counts = PerImage(len(CLASSES))
    with writing_pictures(folder / "pictures.zip") as writer:
        for image_id in image_ids:
            truth, prediction = truth_and_prediction(image_id)
            writer.add(image_id, np.full((40, 50, 3), 90, np.uint8), truth, prediction)
            ids = (torch.from_numpy(one - 1)[None] for one in (prediction, truth))
            counts.update(*ids, (image_id,))
    counts.counts().save(folder / "per_image.npz")


class Place:
    """Folders as the evaluate stage leaves them."""

    def __init__(self, root: Path) -> None:
        self.evaluations, self.results = root / "evaluations", root / "results"
        self.bootstrapped, self.out = root / "bootstrapped", root / "results" / "report.html"

    def write(self, record: dict[str, Any], name: str | None = None) -> Path:
        folder = self.evaluations / (name or record["variant"])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "record.json").write_text(json.dumps(record))
        with (folder / "per_class.csv").open("w", newline="") as file:
            columns = ["class_id", "name", "source", "frequency", "true_pixels", "predicted_pixels", "iou"]
            table = csv.writer(file)
            table.writerow([*columns, "accuracy"])
            for index, (*cells, iou) in enumerate(CLASSES):
                table.writerow([index + 1, *cells, "" if iou is None else iou, ""])
        (folder / "confused.csv").write_text(CONFUSED)
        (folder / "class_map.csv").write_text(CLASS_MAP)
        (folder / "calibration.csv").write_text(CALIBRATION)
        write_pictures(folder, record["pictures"])
        return folder

    def write_data(self) -> None:
        self.bootstrapped.mkdir(parents=True)
        totals = {"images": 5, "pixels": 1000, "labelled_pixels": 805, "classes_seen": 4, "shards": []}
        manifest = {"format": "kiloseg bootstrapped dataset 1", "left_out": []}
        splits = dict.fromkeys(("train", "holdout", "val"), totals)
        (self.bootstrapped / "manifest.json").write_text(json.dumps({**manifest, "splits": splits}))
        columns = [f"{split}_{unit}" for split in splits for unit in ("images", "pixels")]
        lines = [",".join(["class_id,name,source,frequency", *columns])]
        for index, (name, source, frequency, true, *_) in enumerate(CLASSES):
            seen = [3 if true else 0, true] * 3
            lines.append(",".join(map(str, [index + 1, name, source, frequency, *seen])))
        (self.bootstrapped / "class_statistics.csv").write_text("\n".join(lines) + "\n")
        groups = {"f": {"pixels": 322}, "c": {"pixels": 161}, "r": {"pixels": 0}, "stuff": {"pixels": 322}}
        sources = {"things": 483, "stuff": 322, "nothing": 195}
        of_split = {"pixels": 1000, "pixels_from": sources, "groups": groups}
        told = {
            "splits": dict.fromkeys(splits, of_split),
            "classes_never_seen": {split: ["never there", "<only> predicted"] for split in splits},
        }
        (self.bootstrapped / "statistics.json").write_text(json.dumps(told))

    def report(self, *names: str) -> Page:
        write_report(
            self.evaluations, self.results, self.bootstrapped, names or ("exact", "softmax"), self.out
        )
        return Page(self.out.read_text(encoding="utf-8"))


class Page(html.parser.HTMLParser):
    """The page as text, table cells and pictures; unbalanced tags are an error."""

    VOID = frozenset({"meta", "img", "br", "link", "hr", "input"})

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source, self.text, self.open = source, "", []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: dict[str, list[tuple[str, bool]]] = {}
        self._row: str | None = None
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self._row = attributes.get("data-metric")
        if tag == "td" and self._row:
            self.rows.setdefault(self._row, []).append(("", attributes.get("class") == "best"))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data
            if self._row and self.open[-1] == "td":
                text, best = self.rows[self._row][-1]
                self.rows[self._row][-1] = (text + data, best)

    def best(self, metric: str) -> list[bool]:
        return [best for _, best in self.rows[metric]]

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(autouse=True)
def no_vega(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's largest script is the same on every page: the tests in a browser have it."""
    monkeypatch.setattr(build, "vega_script", lambda: "")


def two_variants(root: Path) -> Place:
    """Two evaluated variants: exact is better in quality, softmax is faster."""
    place = Place(root)
    place.write(make_record("exact"))
    place.write(make_record("softmax", miou=0.31, images_per_second=20.0))
    place.write_data()
    return place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return two_variants(tmp_path)


def test_every_variant_and_section_is_on_the_page(place: Place) -> None:
    page = place.report()
    for words in ("exact", "softmax", "What was run", "Curves", "Examples", "The data", "Provenance"):
        assert words in page.text
    assert "exact has the highest mIoU of 2 variants: 43.00 %" in " ".join(page.text.split())
    assert [text for text, _ in page.rows["miou"]] == ["43.00 %", "31.00 %"]
    assert [text for text, _ in page.rows["images_per_second"]] == ["12.3", "20"]


def test_what_could_not_be_measured_is_a_dash(place: Place, tmp_path: Path) -> None:
    nothing = dict.fromkeys(("miou", "miou_present", "pixel_accuracy", "mean_accuracy", "images_per_second"))
    record = make_record("softmax", **nothing)
    record["training"] |= {
        "best_holdout_miou": None,
        "validation_curve": [[200, None, None], [400, None, None]],
    }
    folder = place.write(record)
    table = folder / "per_class.csv"
    header, *lines = table.read_text().splitlines()
    table.write_text(
        "\n".join([header, *(",".join([*line.split(",")[:6], "", ""]) for line in lines)]) + "\n"
    )
    page = place.report()
    assert [text for text, _ in page.rows["miou"]] == ["43.00 %", "–"]
    assert [text for text, _ in page.rows["images_per_second"]] == ["12.3", "–"]
    write_comparison(place.evaluations, ["softmax"], tmp_path / "comparison.csv")
    with (tmp_path / "comparison.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["miou"], row["pixel_accuracy"]) == ("", "")


def test_the_page_needs_nothing_from_outside(place: Place) -> None:
    page = place.report()
    assert "://" not in page.source.replace(VEGA_LITE, "")
    assert not {"link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert not [one for one in page.attributes("script") if "src" in one]
    for picture in page.attributes("img"):
        assert str(picture["src"]).startswith("data:image/")
    for link in page.attributes("a"):
        made = {f"image-{image_id}" for image_id in (7, 3, 8)}  # by the page's script
        assert str(link["href"])[1:] in {attributes.get("id") for _, attributes in page.tags} | made
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_names_are_text_and_never_markup(place: Place) -> None:
    name = "a<i>$x$"
    record = make_record("exact")
    record["settings"]["model.backbone"] = "<script>alert(1)</script>"
    place.write(record)
    place.write(make_record(name))
    page = place.report("exact", name)
    assert "b" not in {tag for tag, _ in page.tags}
    assert page.source.count("<script>alert") == 0
    for words in ("<b>", "cat & dog", "umlaut ä", name, "<script>alert(1)</script>"):
        assert words in page.text


def test_the_best_is_marked_in_its_direction(place: Place) -> None:
    place.write(make_record("softmax", miou=0.31, images_per_second=20.0, train_seconds=60.0))
    page = place.report()
    assert page.best("miou") == [True, False]
    assert page.best("images_per_second") == [False, True]
    assert page.best("train_seconds") == [False, True]
    assert page.best("classes_present") == page.best("classes_predicted") == [False, False]
    assert page.best("pixel_accuracy") == [False, False]  # equal: none is best


def test_what_cannot_be_compared_is_not_ranked(place: Place) -> None:
    record = make_record("softmax", miou=0.31, images=3, train_seconds=5.0)
    record["environment"]["device"] = "NVIDIA H200"
    place.write(record)
    page = place.report()
    assert page.best("miou") == page.best("train_seconds") == [False, False]
    assert "evaluated on different images" in page.text
    assert "ran on different devices" in page.text
    assert "has the highest mIoU" not in page.text


@pytest.mark.parametrize(
    ("kinds", "best", "words"),
    [
        (("cuda_allocator", "cuda_allocator"), [False, True], "the CUDA allocator's count"),
        (("process_resident", "process_resident"), [False, False], "resident, whole process"),
        (("cuda_allocator", "process_resident"), [False, False], "not to be compared"),
    ],
)
def test_memory_says_its_kind_and_is_ranked_only_as_the_allocator_counts_it(
    place: Place, kinds: tuple[str, str], best: list[bool], words: str
) -> None:
    for name, kind, gib in zip(("exact", "softmax"), kinds, (1.5, 1.2), strict=True):
        record = make_record(name, train_peak_memory_gib=gib)
        record["training"]["peak_memory_kind"] = kind
        place.write(record)
    page = place.report()
    assert page.best("train_peak_memory_gib") == best
    assert words in page.text
    assert ("resident memory of the whole process" in page.text) == ("process_resident" in kinds)


def test_a_group_without_classes_is_left_out_and_one_variant_s_gap_is_a_dash(place: Place) -> None:
    place.write(make_record("softmax", miou_common=None, miou_stuff=math.nan))
    page = place.report()
    assert "miou_rare" not in page.rows
    assert page.rows["miou_common"] == [("25.00 %", False), ("–", False)]
    assert page.rows["miou_stuff"] == [("45.00 %", False), ("–", False)]
    groups = [attributes["data-group"] for _, attributes in page.tags if "data-group" in attributes]
    assert groups == ["all classes", "frequent", "common", "stuff"]


def test_a_metric_unknown_to_the_report_is_shown_unranked(place: Place) -> None:
    place.write(make_record("softmax", newly_invented=3.25))
    page = place.report()
    assert page.rows["newly_invented"] == [("–", False), ("3.25", False)]
    assert "newly invented" in page.text


def test_settings_that_differ_stand_side_by_side_and_the_others_once(place: Place) -> None:
    page = place.report()
    before, _, after = page.text.partition("settings in common")
    assert "kind of loss" in before
    assert "kind of loss" not in after
    assert "number of steps" in after
    assert "number of steps" not in before


def test_every_setting_metric_and_fact_has_a_human_name(place: Place) -> None:
    """The keys of settings are tooltips and never text."""
    not_default = {"train.class_lr_multiplier": 3.0}  # else it is left out; embedding names a projection too
    settings = load_settings(ROOT / "params.yaml", variant="embedding", overrides=not_default).flat()
    assert set(labels.SETTINGS) == set(settings)
    record = make_record("exact")
    record["settings"] = settings
    record["environment"] = dict.fromkeys(labels.ENVIRONMENT, "one")
    counts = ClassCounts(4)
    counts.update(torch.arange(4), torch.arange(4))
    record["metrics"] |= summarize(counts, ["r", "c", "f", "stuff"]).flat()
    place.write(record)
    text = place.report("exact").text
    assert not [key for key in settings if key in text]
    assert not [key for key in record["metrics"] if "_" in key and key in text]
    assert not [key for key in record["metrics"] if key not in {measure.key for measure in MEASURES}]


def test_best_and_worst_classes_are_those_with_true_pixels(place: Place) -> None:
    page = place.report("exact")
    section = page.text[page.text.index("Only classes with pixels in the truth") :]
    section = section[: section.index("Confused classes")]
    words = [line.strip() for line in section.splitlines() if line.strip()]
    best, worst = " ".join(words).split("worst")
    positions = [best.index(name) for name in ("grass", "<b>", "cat & dog")]
    assert positions == sorted(positions)
    assert worst.index("sky") < worst.index("umlaut ä")  # both 0: the one with more pixels first
    assert "never there" not in section
    assert "only predicted" not in section
    assert "2 of the 5 classes in the truth have IoU 0" in " ".join(words)


def data_of(page: Page, name: str) -> Any:
    found = re.search(rf'<script type="application/json" id="{name}-data">(.*?)</script>', page.source)
    assert found is not None
    return json.loads(found[1])


def test_the_gallery_has_random_best_and_worst_images_with_maps_and_numbers(place: Place) -> None:
    shown = data_of(place.report(), "gallery")
    ids = [image["id"] for image in shown["images"]]
    named = {kind: [ids[at] for at in places] for kind, places in shown["kinds"].items()}
    assert named == {"random": [7], "best": [3], "worst": [8]}
    image = shown["images"][ids.index(3)]
    truth, prediction = truth_and_prediction(3)
    maps = [np.frombuffer(zlib.decompress(base64.b64decode(one)), np.uint8) for one in image["maps"]]
    for found, expected in zip(maps, (truth, prediction, prediction), strict=True):
        class_ids = np.array([0, *image["classes"]])[found.reshape(image["height"], image["width"])]
        np.testing.assert_array_equal(class_ids, expected)
    assert image["accuracies"] == [1 - 3 / 40] * 2
    assert image["counts"][1] == {"6": [960, 1104, 960], "7": [816, 816, 960]}  # right, predicted, true
    assert image["colors"] == ["#{:02x}{:02x}{:02x}".format(*one) for one in picture_colors([6, 7]).values()]
    assert image["photograph"].startswith("data:image/jpeg;base64,")


def test_variants_without_pictures_make_a_page_without_that_section(place: Place) -> None:
    for name in ("exact", "softmax"):
        place.write({**make_record(name), "pictures": []})
    page = place.report()
    assert page.attributes("img") == []
    assert "Examples" not in page.text
    assert data_of(page, "chart").keys() >= {"loss", "tail", "class_map", "calibration"}


def test_a_confused_pair_is_cut_from_the_picture_that_shows_most_of_it(place: Place) -> None:
    page = place.report("exact")
    (crop,) = page.attributes("img")  # <b> for umlaut is in no picture
    assert crop["alt"] == "sky taken for grass in image 8, the pixels marked"
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(str(crop["src"]).partition("base64,")[2]))))
    marked = (np.abs(pixels.astype(int) - [172, 45, 130]).max(2) < 25).mean()
    assert marked == pytest.approx(8 * 48 / (20 * 50), abs=0.06)  # 8 rows of 48 pixels, 12 rows below them
    assert "in none of the drawn images" in page.text


def test_memory_is_charted_where_it_was_computed_and_measurements_are_named_apart(place: Place) -> None:
    assert "Memory against" not in place.report().text
    rows = [
        {"head": head, "num_classes": c, "predicted_gib": 1 + slope * c, "measured_gib": None}
        for head, slope in (("softmax", 0.01), ("embedding", 1e-6))
        for c in (19, 1284, 100_000)
    ]
    memory = {"unit": "GiB", "settings": {}, "rows": rows, "batch_size": 10, "crop_size": 512}
    (place.results / "memory.json").write_text(json.dumps(memory))
    page = place.report()
    assert "Memory against the number of classes" in page.text
    assert "nothing was measured" in page.text
    assert "batch 10, crop 512 × 512" in page.text
    rows[0]["measured_gib"] = 1.2
    (place.results / "memory.json").write_text(json.dumps(memory))
    assert "nothing was measured" not in place.report().text


def test_the_data_are_told_by_split_and_group(place: Place) -> None:
    text = " ".join(place.report().text.split())
    assert "7 classes: 1 frequent, 2 common, 2 rare, 2 stuff." in text
    assert "80.50 %" in text
    assert "each of the 5 classes seen there" in text


def test_the_same_inputs_give_the_same_bytes(place: Place) -> None:
    place.report()
    first = place.out.read_bytes()
    place.out.unlink()
    place.report()
    assert place.out.read_bytes() == first


Damage = Callable[[Path], object]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "record.json").unlink(), "not evaluated yet"),
        (lambda folder: (folder / "record.json").write_text('{"format": 1'), "record.json"),
        (lambda folder: (folder / "record.json").write_text('{"format": 2}'), "format"),
        (lambda folder: (folder / "record.json").write_bytes(b"\xff\xfe"), "record.json"),
        (lambda folder: (folder / "per_class.csv").unlink(), "per_class.csv"),
        (lambda folder: (folder / "per_class.csv").write_text("class_id,name\n1,x\n"), "no column"),
        (lambda folder: (folder / "pictures.zip").unlink(), r"pictures\.zip"),
        (lambda folder: (folder / "pictures.zip").write_bytes(b"no archive"), r"pictures\.zip"),
        (lambda folder: (folder / "per_image.npz").write_bytes(b"no archive"), r"per_image\.npz"),
        (lambda folder: (folder / "class_map.csv").write_text("class_id,x\n1,2\n"), "no column"),
    ],
)
def test_what_is_missing_or_damaged_is_named_with_the_fix(place: Place, damage: Damage, said: str) -> None:
    place.results.mkdir()
    place.out.write_text("the last report")
    damage(place.evaluations / "softmax")
    with pytest.raises(DataError, match=said) as caught:
        place.report()
    assert "evaluate@softmax" in str(caught.value.hint)
    assert place.out.read_text() == "the last report"  # nothing half-written
    assert [path.name for path in place.results.iterdir()] == ["report.html"]


@pytest.mark.parametrize("key", ["metrics", "training", "num_classes"])
def test_a_record_without_a_key_names_the_key(place: Place, key: str) -> None:
    record = copy.deepcopy(make_record("softmax"))
    del record[key]
    (place.evaluations / "softmax" / "record.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match=key):
        place.report()


def test_a_record_of_another_variant_is_refused(place: Place) -> None:
    place.write(make_record("exact"), name="softmax")
    with pytest.raises(DataError, match="record of variant 'exact'"):
        place.report()


def test_missing_or_damaged_data_and_memory_are_named(place: Place) -> None:
    (place.results).mkdir()
    (place.results / "memory.json").write_text("{}")
    with pytest.raises(DataError, match="measure_memory"):
        place.report()
    (place.results / "memory.json").unlink()
    (place.bootstrapped / "class_statistics.csv").write_text("class_id\n1\n")
    with pytest.raises(DataError, match="class_statistics"):
        place.report()
    (place.bootstrapped / "manifest.json").unlink()
    with pytest.raises(DataError, match="dvc repro bootstrap"):
        place.report()


def test_no_variants_is_a_wrong_setting(place: Place) -> None:
    with pytest.raises(UsageError, match="no variants"):
        write_report(place.evaluations, place.results, place.bootstrapped, [], place.out)


def test_the_stage_writes_the_page_and_the_comparison(
    place: Place, monkeypatch: pytest.MonkeyPatch, empty_store: Path
) -> None:
    from stages import report

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    project = place.evaluations.parent
    shutil.copy(empty_store, project / "mlflow.db")
    (project / "params.yaml").write_text("data: {root: data/tiny}\nvariants: {exact: {}, softmax: {}}\n")
    place.bootstrapped.rename(project / "moved")
    (project / "data").mkdir()
    (project / "moved").rename(project / "data" / "bootstrapped")
    monkeypatch.chdir(project)
    report.main()
    assert "softmax" in Page(place.out.read_text(encoding="utf-8")).text
    with (place.results / "comparison.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["variant"] for row in rows] == ["exact", "softmax"]
    assert [float(row["miou"]) for row in rows] == [0.43, 0.31]
    assert rows[0]["miou_rare"] == ""


def test_the_comparison_keeps_the_metrics_exactly(place: Place) -> None:
    exact = 0.12345678901234566
    place.write(make_record("exact", miou=exact))
    write_comparison(place.evaluations, ["exact"], place.results / "comparison.csv")
    with (place.results / "comparison.csv").open(newline="") as file:
        assert [float(row["miou"]) for row in csv.DictReader(file)] == [exact]


def test_the_data_section_tells_sources_groups_and_the_classes_never_seen(place: Place) -> None:
    page = place.report("exact")
    text = "".join(page.text.split())
    assert "pixelsfromthings48.30%48.30%48.30%pixelsfromstuff32.20%" in text
    assert "frequent,ofthelabeledpixels40.00%" in text
    assert "2classesneverseenintrainneverthere,<only>predicted" in text
    (place.bootstrapped / "statistics.json").write_text("{}")
    with pytest.raises(DataError, match="damaged"):
        place.report("exact")


def test_all_classes_stand_side_by_side_with_the_change_between_variants(place: Place) -> None:
    table = place.evaluations / "softmax" / "per_class.csv"
    table.write_text(table.read_text().replace("300,300,0.5", "300,300,0.125"))
    source = place.report().source
    section = source[source.index('id="every-class"') : source.index('id="data"')]
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in section.split("<tr")[2:]]
    assert [row[0] for row in cells] == [
        "grass",
        "&lt;b&gt;",
        "cat &amp; dog",
        "sky",
        "umlaut ä",
        "only predicted",
    ]  # by true pixels; what is neither in truth nor in prediction is left out
    assert cells[2] == ["cat &amp; dog", "common", "300", "50.00 %", "12.50 %", "37.50 %", ""]
    assert re.findall(r'href="#image-(\d)"', section) == ["3", "7", "8"] * 2  # of grass and sky
    alone = place.report("exact").source
    assert ">change</button>" in source
    assert ">change</button>" not in alone


def test_confused_pairs_are_listed_and_an_older_evaluation_has_none(place: Place) -> None:
    (place.evaluations / "softmax" / "confused.csv").unlink()
    page = place.report()
    section = page.source[page.source.index('id="confused"') : page.source.index('id="every-class"')]
    assert section.count("<details") == 1
    said = re.findall(r"<figcaption>(.*?)</figcaption>", section)
    assert said[0] == "<strong>sky</strong> taken for <strong>grass</strong>: 80 pixels, 88.88 % of the class"
    (place.evaluations / "exact" / "confused.csv").unlink()
    assert 'id="confused"' not in place.report().source
    (place.evaluations / "exact" / "confused.csv").write_text("class_id,name\n1,x\n")
    with pytest.raises(DataError, match=r"(?s)confused\.csv.*dvc repro --force evaluate@exact"):
        place.report()


def test_the_first_picture_is_miou_against_the_memory_of_each_variant_s_step(place: Place) -> None:
    assert 'id="accuracy"' not in place.report().source
    step = {"num_classes": 7, "images_per_step": 6, "crop_size": 48}
    curve = {"unit": "GiB", "rows": []}
    curve["variants"] = [{"variant": "exact", "predicted_gib": 0.25, "measured_gib": None, **step}]
    place.results.mkdir(exist_ok=True)
    (place.results / "memory.json").write_text(json.dumps(curve))
    page = place.report()
    assert page.source.index('id="accuracy"') < page.source.index('id="run"')
    text = " ".join(page.text.split())
    assert "exact: 43.00 % at 0.250 GiB, predicted; softmax: 31.00 %, not drawn: its memory" in text
    curve["variants"].append({"variant": "softmax", "predicted_gib": 2, "measured_gib": 2.5, **step})
    (place.results / "memory.json").write_text(json.dumps(curve))
    page = place.report()
    assert "softmax: 31.00 % at 2.50 GiB, measured." in " ".join(page.text.split())
    points = data_of(page, "chart")["accuracy"]["data"]["values"]
    assert [(one["variant"], one["gib"], one["miou"]) for one in points] == [
        ("exact", 0.25, 0.43),
        ("softmax", 2.5, 0.31),
    ]
    assert "softmax takes 2.50, 10.0 times as much." in " ".join(page.text.split())


def test_charts_show_calibration_and_the_names_of_the_map(place: Place) -> None:
    (place.evaluations / "softmax" / "class_map.csv").unlink()
    charts = data_of(place.report(), "chart")
    assert charts["calibration"]["data"]["values"][0] == {
        "variant": "exact",
        "confidence": 0.55,
        "accuracy": 0.5,
        "pixels": 100,
    }
    chosen = charts["class_map"]["params"][0]
    assert (chosen["value"], chosen["bind"]["options"]) == ("exact", ["exact"])
    places = {one["name"]: one for one in charts["class_map"]["data"]["values"]}
    assert (places["sky"]["x"], places["sky"]["y"], places["sky"]["iou"]) == (0.7, -7, "0.00 %")
    assert [name for name, one in places.items() if not one["met"]] == ["never there"]


def test_the_commands_and_digests_that_give_the_numbers_again_are_named(place: Place) -> None:
    record = make_record("exact")
    commit = "0123456789" * 4
    digests = {"dvc_lock": "ab" * 16, "data_digest": "cd" * 16}
    record["environment"] |= {"git_commit": f"{commit}-dirty", **digests}
    place.write(record)
    text = place.report("exact").text
    for words in (f"git checkout {commit}\n", "dvc repro evaluate@exact", "ab" * 16, "cd" * 16, "differed"):
        assert words in text
    assert "git checkout" not in place.report("softmax").text
