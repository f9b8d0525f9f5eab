"""The sentences at the top of the report, and the seeds below its table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.report import build
from tests.pipeline.report.test_build import Place, make_record, two_variants


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(build, "vega_script", lambda: "")
    return two_variants(tmp_path)


def told(place: Place) -> str:
    return " ".join(place.report().text.split())


def seeds(place: Place, variant: str, mious: dict[int, float]) -> None:
    for seed, miou in mious.items():
        record = make_record(f"{variant}-seed-{seed}", miou=miou)
        record |= {"seed_of": variant}
        own = make_record(variant)["settings"]
        record["settings"] = {**own, "train.seed": seed}
        place.write(record)


def test_with_one_seed_the_lead_is_judged_by_the_images_alone(place: Place) -> None:
    text = told(place)
    assert "softmax follows 12.00 points behind (+0.00 to +0.00 over other images)" in text  # equal counts
    assert "these images do not settle which is better; each was trained once" in text
    (place.evaluations / "softmax" / "per_image.npz").unlink()
    assert "softmax follows 12.00 points behind. Every variant was trained with one seed" in told(place)


@pytest.mark.parametrize(
    ("of_softmax", "verdict"),
    [({1: 0.30, 2: 0.32}, "beyond"), ({1: 0.10, 2: 0.75}, "within")],
)
def test_with_several_seeds_it_is_judged_by_their_spread(
    place: Place,
    of_softmax: dict[int, float],
    verdict: str,
) -> None:
    seeds(place, "exact", {1: 0.44, 2: 0.42})
    seeds(place, "softmax", of_softmax)
    text = told(place)
    assert f"{verdict} what seeds alone change." in text
    cells = text.replace(" ", "")
    assert "trainingsthatdifferintheirseed33" in cells
    assert "mIoU,meanoverseeds43.00%" in cells
    assert "standarddeviationofonetraining1.00%" in cells  # of 43, 44 and 42


def test_a_single_variant_is_told_without_a_winner(place: Place) -> None:
    text = " ".join(place.report("softmax").text.split())
    assert (
        "softmax was evaluated on val: mIoU 31.00 %, with 80.00 % of the pixels of 4 val images right."
        in text
    )
    assert "Every variant was trained with one seed" in text


def test_memory_is_told_where_it_is_known(place: Place) -> None:
    step = {"num_classes": 7, "images_per_step": 6, "crop_size": 48, "predicted_gib": 2.0}
    place.results.mkdir(exist_ok=True)
    path: Path = place.results / "memory.json"
    path.write_text(json.dumps({"unit": "GiB", "rows": [], "variants": [{"variant": "exact", **step}]}))
    assert "A training step of exact with 7 classes is predicted to take 2 GiB." in told(place)
