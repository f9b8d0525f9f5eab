"""The federated score against counting pixel by pixel, and the lists that bootstrapping keeps for it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.data.bootstrap.build import bootstrap
from pipeline.data.bootstrap.options import BootstrapOptions
from pipeline.data.labels.label_space import ClassEntry, LabelSpace
from pipeline.data.store.looked_for import NAME, LookedFor
from pipeline.evaluation.federated import federated_iou, federated_metrics, val2017_metrics
from pipeline.evaluation.metrics import ClassCounts, summarize
from pipeline.evaluation.per_image import PerImage
from pipeline.runtime.errors import DataError
from tests.paths import SHARED
from tests.pipeline.data.small_dataset import APPLE, BLANKET, CUP, SmallDataset, box, typical, whole

MINI = SHARED / "data" / "coco_lvis_mini"


def space(num_classes: int, *stuff: int) -> LabelSpace:
    """Classes of which some, by train id, have a category of stuff too."""
    return LabelSpace(
        tuple(
            ClassEntry(
                i + 1, f"class {i}", "lvis", "f", {"lvis": (i,)} | ({"stuff": (i,)} if i in stuff else {})
            )
            for i in range(num_classes)
        )
    )


def test_a_false_positive_counts_only_where_its_class_was_looked_for() -> None:
    """Pixel by pixel: one wrongly called c is not in c's union, in an image without c on its list."""
    random = np.random.default_rng(0)
    num_classes, ids = 8, [70, 71, 90, 4_000_000_000]
    listed = {image: random.choice(8, 3, replace=False) + 1 for image in ids}
    listed[90] = np.array([], int)
    counts, union, hits = PerImage(num_classes), np.zeros(num_classes), np.zeros(num_classes)
    for image in ids:
        target, prediction = random.integers(-1, 8, (9, 11)), random.integers(0, 8, (9, 11))
        counts.update(torch.from_numpy(prediction)[None], torch.from_numpy(target)[None], (image,))
        for found, true in zip(prediction.flat, target.flat, strict=True):
            if true < 0:
                continue
            union[true] += 1
            hits[true] += found == true
            union[found] += found != true and (found + 1 in listed[image] or found in (2, 5))
    looked_for = LookedFor.of({image: part.tolist() for image, part in listed.items()})
    found = federated_iou(counts.counts(), looked_for, space(num_classes, 2, 5))
    np.testing.assert_allclose(found, hits / union)
    metrics = federated_metrics(counts.counts(), looked_for, space(num_classes, 2, 5))
    assert metrics == {"miou_federated": pytest.approx((hits / union).mean())}
    nowhere = federated_iou(counts.counts(), LookedFor.of({}), space(num_classes, *range(8)))
    both = ClassCounts(num_classes)
    all_counts = counts.counts()
    for name, own in (("hits", both.true_positives), ("predicted", both.predicted), ("actual", both.actual)):
        own += torch.from_numpy(np.bincount(all_counts.classes, getattr(all_counts, name), 8)).long()
    np.testing.assert_allclose(nowhere, both.iou().numpy())  # looked for everywhere: the usual IoU
    assert federated_metrics(all_counts, None, space(num_classes)) == {}


def test_val2017_stands_beside_lvis_val_where_both_exist() -> None:
    counts, alone = PerImage(4), ClassCounts(4)
    for image, folder in enumerate(("val2017", "train2017", "val2017")):
        generator = torch.Generator().manual_seed(image)
        prediction, target = torch.randint(0, 4, (2, 1, 6, 7), generator=generator)
        counts.update(prediction, target, (image,))
        if folder == "val2017":
            alone.update(prediction, target)
    files = ["val2017/0.jpg", "train2017/1.jpg", "val2017/2.jpg"]
    found = val2017_metrics(counts.counts(), files, 4)
    assert found == {"miou_val2017": pytest.approx(summarize(alone).miou), "images_val2017": 2}
    for files in (["val2017/a"] * 3, ["train2017/a"] * 3, ["images/a"] * 3):
        assert val2017_metrics(counts.counts(), files, 4) == {}


def test_bootstrapping_keeps_what_was_looked_for(tmp_path: Path) -> None:
    data: SmallDataset = typical(tmp_path / "data")
    data.add(95, "val", lvis=[(1, box(0, 0, 4, 4)), (2, box(2, 2, 6, 6))], stuff=[(94, whole())])
    for image in data.files["lvis_v1_val"]["images"]:
        if image["id"] == 95:
            image |= {"neg_category_ids": [110, 7], "not_exhaustive_category_ids": [1]}  # 7 is unknown
    bootstrap(data.write(), tmp_path / "out", BootstrapOptions(holdout_fraction=0.3))
    found = LookedFor.load(tmp_path / "out")
    assert found is not None
    pairs = {(90, BLANKET): True, (90, CUP): False, (95, APPLE): False, (95, CUP): True, (95, BLANKET): True}
    pairs |= {(92, CUP): True, (1, APPLE): True, (1, BLANKET): False, (12_345, APPLE): False}
    images, classes = np.array(list(pairs)).T
    assert found.contain(images, classes).tolist() == list(pairs.values())
    again = tmp_path / "again"
    bootstrap(data.root, again, BootstrapOptions(holdout_fraction=0.3))
    assert (again / NAME).read_bytes() == (tmp_path / "out" / NAME).read_bytes()
    (again / NAME).write_bytes(b"PK")
    with pytest.raises(DataError, match="damaged list of classes"):
        LookedFor.load(again)
    assert LookedFor.load(tmp_path) is None


@pytest.mark.skipif(not MINI.is_dir(), reason="needs the real sample of LVIS")
def test_real_lists_are_kept_as_lvis_has_them(tmp_path: Path) -> None:
    bootstrap(MINI, tmp_path / "out", BootstrapOptions(check_images=False))
    found, listed = LookedFor.load(tmp_path / "out"), 0
    assert found is not None
    tree = json.loads((MINI / "annotations" / "lvis_v1_val.json").read_text())
    label_space = LabelSpace.load(tmp_path / "out" / "label_space.json")
    class_ids = np.array([label_space.lookup("lvis")[category] for category in range(1, 1_204)])
    for image in tree["images"]:
        annotated = {one["category_id"] for one in tree["annotations"] if one["image_id"] == image["id"]}
        expected = annotated | set(image["neg_category_ids"])
        expected -= set(image["not_exhaustive_category_ids"])
        mask = found.contain(np.full(1_203, image["id"]), class_ids)
        if image["id"] in found.image_ids:
            assert {one + 1 for one in np.flatnonzero(mask)} == expected
            listed += len(expected)
    assert listed > 100
