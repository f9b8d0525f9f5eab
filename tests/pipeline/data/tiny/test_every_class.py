"""Pictures of every class: all 1,284 occur, no two look alike, the frequent ones come more often."""

import json
from collections import Counter
from dataclasses import astuple

import numpy as np
import pytest

from pipeline.data.labels.label_space import LVIS, STUFF, UNLABELLED_STUFF
from pipeline.data.labels.merge import merge_categories
from pipeline.data.labels.official import official_categories
from pipeline.data.tiny import every_class
from pipeline.data.tiny.generate import generate_tiny

OTHER = 183  # COCO-Stuff's, which stands for every thing
LEAST = 143  # 1,284 classes, nine a picture


def _space():
    official = official_categories()
    return merge_categories(official.lvis, official.stuff, official.merged_pairs)


@pytest.mark.slow
def test_every_class_is_annotated_in_train_and_in_val(tmp_path):
    root = tmp_path / "drawn"
    generate_tiny(root, num_train=LEAST, num_val=LEAST, image_size=(48, 48), every_class=True)
    tables = {
        name: json.loads((root / "annotations" / f"{name}.json").read_text())
        for name in ("lvis_v1_train", "lvis_v1_val", "stuff_train2017", "stuff_val2017")
    }
    space = _space()
    stuff = [table for name, table in tables.items() if name.startswith("stuff")]
    for split in ("train", "val"):
        images = {row["id"] for row in tables[f"lvis_v1_{split}"]["images"]}
        assert len(images) == LEAST
        found = {space.lookup(LVIS)[row["category_id"]] for row in tables[f"lvis_v1_{split}"]["annotations"]}
        found |= {
            space.lookup(STUFF)[row["category_id"]]
            for table in stuff
            for row in table["annotations"]
            if row["image_id"] in images and row["category_id"] not in UNLABELLED_STUFF
        }
        assert found - {0} == set(range(1, 1285))
    rows = [row for table in tables.values() for row in table["annotations"]]
    named = [row for row in rows if row["category_id"] != OTHER or "iscrowd" not in row]
    assert len(named) == 9 * 2 * LEAST  # none overlooked, none hidden
    assert min(row["area"] for row in named) >= 20


def test_the_frequent_classes_are_dealt_more_often():
    dealt = every_class.deal(1000, np.random.default_rng(0))
    counts = Counter(class_id for cells in dealt for class_id in cells)
    assert sum(counts.values()) == 9000
    means = {
        group: np.mean([counts[c.class_id] for c in _space().classes if c.frequency == group])
        for group in ("f", "c", "r", "stuff")
    }
    # by hand: each once, the other 7,716 places in the ratio 10 : 6 : 3 : 10 among 405, 461, 337, 81 classes
    share = 7716 / (405 * 10 + 461 * 6 + 337 * 3 + 81 * 10)
    expected = {"f": 1 + 10 * share, "c": 1 + 6 * share, "r": 1 + 3 * share, "stuff": 1 + 10 * share}
    assert means == pytest.approx(expected, abs=0.5)


def test_no_two_classes_are_made_of_the_same():
    surfaces = [every_class.surface_of(class_id) for class_id in range(1, 1285)]
    assert len({astuple(surface)[:3] for surface in surfaces}) == 1284


def test_the_same_seed_draws_the_same_and_another_seed_another_picture():
    def picture(seed):
        rng = np.random.default_rng(seed)
        return every_class.draw_cells(every_class.deal(LEAST, rng)[0], rng, 48, 48)

    one, again, other = picture(1), picture(1), picture(2)
    assert one.image.tobytes() == again.image.tobytes()
    assert one.owner.tobytes() == again.owner.tobytes()
    assert one.image.tobytes() != other.image.tobytes()


def test_too_few_pictures_are_refused(tmp_path):
    with pytest.raises(ValueError, match="143 images"):
        generate_tiny(tmp_path / "drawn", num_train=LEAST, num_val=20, every_class=True)
