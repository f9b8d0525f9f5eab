"""What the field's annotation tools export, on a small file in each tool's form."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet as pq

from pipeline.data.bootstrap.build import bootstrap
from pipeline.data.bootstrap.options import BootstrapOptions
from pipeline.data.check.layouts import check_layout
from pipeline.data.loading.dataset import SegmentationDataset
from pipeline.runtime.errors import DataError

SIZE = (6, 8)
RED, GREEN, BLACK = (250, 50, 83), (50, 183, 250), (0, 0, 0)


def drawn() -> np.ndarray:
    """(H, W) of 0 nothing, 1 red, 2 green."""
    values = np.zeros(SIZE, np.uint8)
    values[1:4, 2:5], values[4:, 6:] = 1, 2
    return values


def images(root: Path) -> None:
    for split in ("train", "val"):
        for name in ("a", "b"):
            (root / split).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", SIZE[::-1], (9, 99, 199)).save(root / split / f"{name}.jpg")


def colored(root: Path, mode: str = "RGB") -> None:
    """A mask in colors for each image."""
    images(root)
    for path in sorted(root.glob("*/*.jpg")):
        target = root / "annotations" / path.parent.name / f"{path.stem}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        if mode == "P":
            image = Image.fromarray(drawn())
            image.putpalette([*BLACK, *RED, *GREEN])
        else:
            image = Image.fromarray(np.array([BLACK, RED, GREEN], np.uint8)[drawn()]).convert(mode)
        image.save(target)


def target_of(root: Path, out: Path, layout: str) -> tuple[list[str], np.ndarray]:
    result = bootstrap(root, out, BootstrapOptions(layout=layout))
    return result.label_space.names, SegmentationDataset(out, root, "val")[0].target.numpy()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_masks_in_colors_with_a_list_of_colors(tmp_path: Path, mode: str) -> None:
    colored(tmp_path / "root", mode)
    listed = tmp_path / "root" / "annotations" / "classes.csv"
    listed.write_text("color,name\n#32b7fa,sea\n#fa3253,kite\n000000,\n")
    names, target = target_of(tmp_path / "root", tmp_path / "out", "masks")
    assert names == ["sea", "kite"]
    np.testing.assert_array_equal(target, np.array([-1, 1, 0])[drawn()])


def test_cvat_segmentation_mask_with_its_labelmap(tmp_path: Path) -> None:
    """CVAT, "Segmentation mask 1.1": labelmap.txt beside RGB masks."""
    colored(tmp_path / "root")
    (tmp_path / "root" / "annotations" / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\nkite:250,50,83::\nopen sea: blue:50,183,250::\n"
    )
    names, target = target_of(tmp_path / "root", tmp_path / "out", "masks")
    assert names == ["kite", "open sea: blue"]
    np.testing.assert_array_equal(target, drawn().astype(int) - 1)


def test_labelme_voc_masks_are_palette_indices(tmp_path: Path) -> None:
    """labelme2voc: SegmentationClass holds palette PNGs; class_names.txt lists them from 0 on."""
    images(tmp_path / "root")
    for path in sorted((tmp_path / "root").glob("*/*.jpg")):
        target = tmp_path / "root" / "annotations" / path.parent.name / f"{path.stem}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(drawn(), mode="P")
        image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
        image.save(target)
    listed = tmp_path / "root" / "annotations" / "classes.csv"
    listed.write_text("value,name\n0,_background_\n1,kite\n2,sea\n")
    names, target = target_of(tmp_path / "root", tmp_path / "out", "masks")
    assert names == ["_background_", "kite", "sea"]
    np.testing.assert_array_equal(target, drawn())


def label_studio(name: str) -> dict[str, object]:
    """Label Studio's "COCO": categories count from 0, files lie under images/."""
    return {
        "images": [{"width": 8, "height": 6, "id": 0, "file_name": f"images/{name}.jpg"}],
        "categories": [{"id": 0, "name": "kite"}, {"id": 1, "name": "sea"}],
        "annotations": [
            {
                "id": 0,
                "image_id": 0,
                "category_id": 0,
                "segmentation": [[2, 1, 5, 1, 5, 4, 2, 4]],
                "bbox": [2, 1, 3, 3],
                "ignore": 0,
                "iscrowd": 0,
                "area": 9,
            }
        ],
        "info": {"year": 2026, "version": "1.0", "description": "", "contributor": "Label Studio"},
    }


def cvat_coco(name: str) -> dict[str, object]:
    """CVAT's "COCO 1.0": licenses and attributes, RLE for masks."""
    return {
        "licenses": [{"name": "", "id": 0, "url": ""}],
        "info": {
            "contributor": "",
            "date_created": "",
            "description": "",
            "url": "",
            "version": "",
            "year": "",
        },
        "categories": [
            {"id": 1, "name": "kite", "supercategory": ""},
            {"id": 2, "name": "sea", "supercategory": ""},
        ],
        "images": [
            {
                "id": 1,
                "width": 8,
                "height": 6,
                "file_name": f"images/{name}.jpg",
                "license": 0,
                "flickr_url": "",
                "coco_url": "",
                "date_captured": 0,
            }
        ],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 1,
                "segmentation": {"counts": [13, 3, 3, 3, 3, 3, 20], "size": [6, 8]},
                "area": 9,
                "bbox": [2, 1, 3, 3],
                "iscrowd": 1,
                "attributes": {"occluded": False},
            }
        ],
    }


@pytest.mark.parametrize("made", [label_studio, cvat_coco])
def test_coco_json_of_annotation_tools(tmp_path: Path, made: Callable[[str], dict[str, object]]) -> None:
    root = tmp_path / "root"
    (root / "annotations").mkdir(parents=True)
    for number, split in enumerate(("train", "val")):
        (root / split / "images").mkdir(parents=True)
        Image.new("RGB", SIZE[::-1]).save(root / split / "images" / f"{split}.jpg")
        tree = made(split)
        for image in tree["images"]:  # type: ignore[attr-defined]
            image["id"] += 10 * number
        for annotation in tree["annotations"]:  # type: ignore[attr-defined]
            annotation["image_id"] += 10 * number
        (root / "annotations" / f"{split}.json").write_text(json.dumps(tree))
    names, target = target_of(root, tmp_path / "out", "coco")
    assert names == ["kite", "sea"]
    np.testing.assert_array_equal(target, np.where(drawn() == 1, 0, -1))


def encoded(values: np.ndarray, form: str) -> dict[str, object]:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, form)
    return {"bytes": buffer.getvalue(), "path": None}


def parquet(root: Path, column: str = "label") -> None:
    """As datasets' push_to_hub writes a set of two features of type Image."""
    (root / "data").mkdir(parents=True, exist_ok=True)
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for split, number in (("train", 3), ("validation", 1)):
        rows = {
            "image": [encoded(np.full((*SIZE, 3), 9 * i, np.uint8), "JPEG") for i in range(number)],
            column: [encoded(np.where(drawn() == 2, 255, drawn()), "PNG") for _ in range(number)],
        }
        schema = pa.schema([("image", struct), (column, struct)])
        table = pa.table(rows, schema=schema)
        pq.write_table(table, root / "data" / f"{split}-00000-of-00001.parquet")


@pytest.mark.parametrize("column", ["label", "annotation"])
def test_parquet_of_the_hugging_face_hub(tmp_path: Path, column: str) -> None:
    root = tmp_path / "root"
    parquet(root, column)
    (root / "id2label.json").write_text('{"0": "sand", "1": "kite"}')
    names, target = target_of(root, tmp_path / "out", "parquet")
    assert names == ["sand", "kite"]
    np.testing.assert_array_equal(target, np.array([0, 1, -1])[drawn()])
    assert check_layout(root, "parquet").faults == []
    before = [path.stat().st_mtime_ns for path in sorted((root / "unpacked").rglob("*"))]
    target_of(root, tmp_path / "out", "parquet")
    assert [path.stat().st_mtime_ns for path in sorted((root / "unpacked").rglob("*"))] == before


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda root: parquet(root, "depth"), "no columns of images and masks"),
        (lambda root: next((root / "data").glob("val*")).unlink(), "no Parquet file for val"),
        (lambda root: next((root / "data").glob("val*")).write_bytes(b"x"), "unreadable Parquet file"),
        (lambda root: (root / "id2label.json").unlink(), "no readable list of classes"),
        (lambda root: (root / "id2label.json").write_text("[]"), "a damaged list of classes"),
        (lambda root: (root / "id2label.json").write_text('{"0": "sand"}'), "1, on 9 pixels"),
    ],
)
def test_broken_parquet_is_one_error(tmp_path: Path, spoil: Callable[[Path], object], words: str) -> None:
    root = tmp_path / "root"
    parquet(root)
    (root / "id2label.json").write_text('{"0": "sand", "1": "kite"}')
    spoil(root)
    with pytest.raises(DataError) as caught:
        bootstrap(root, tmp_path / "out", BootstrapOptions(layout="parquet"))
    assert words in str(caught.value)


def another_color(root: Path) -> None:
    path = root / "annotations" / "val" / "a.png"
    values = np.array(Image.open(path))
    values[0, :3] = 7, 7, 7
    Image.fromarray(values).save(path)


def gray(root: Path) -> None:
    Image.new("L", SIZE[::-1]).save(root / "annotations" / "val" / "a.png")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (another_color, "#070707, on 3 pixels"),
        (gray, "a mask without colors"),
        (lambda root: (root / "annotations" / "val" / "a.png").unlink(), "missing mask"),
        (
            lambda root: (root / "annotations/classes.csv").write_text("color,name\nred,kite\n"),
            "a damaged list",
        ),
    ],
)
def test_broken_masks_in_colors_are_one_error(
    tmp_path: Path, spoil: Callable[[Path], object], words: str
) -> None:
    root = tmp_path / "root"
    colored(root)
    (root / "annotations" / "classes.csv").write_text("color,name\n#32b7fa,sea\n#fa3253,kite\n#000000,\n")
    spoil(root)
    with pytest.raises(DataError) as caught:
        bootstrap(root, tmp_path / "out", BootstrapOptions(layout="masks"))
    assert words in str(caught.value)
    faults = check_layout(root, "masks").faults
    assert any(words in f"{fault.kind} {fault.detail}" for fault in faults)


def test_a_damaged_labelmap_is_one_error(tmp_path: Path) -> None:
    colored(tmp_path)
    (tmp_path / "annotations" / "labelmap.txt").write_text("kite:red::\n")
    with pytest.raises(DataError, match="a damaged list of classes"):
        bootstrap(tmp_path, tmp_path / "out", BootstrapOptions(layout="masks"))
