"""Images are read in the frame of their annotation; where nothing tells which that is, they are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from pipeline.data.bootstrap.build import bootstrap
from pipeline.data.bootstrap.options import BootstrapOptions
from pipeline.data.check.layouts import check_layout
from pipeline.data.loading.dataset import SegmentationDataset, read_image
from pipeline.data.store.images import open_image
from pipeline.data.store.orientation import read_frame, turn, turn_back
from pipeline.inference.images import read_picture
from pipeline.runtime.errors import DataError
from tests.pipeline.data.layouts.png_writer import RGB, chunk, write_png
from tests.pipeline.data.layouts.small_layouts import Coco, Masks

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 10, 3), np.uint8)


def save(path: Path, orientation: int, pixels: np.ndarray = PIXELS) -> None:
    """Save pixels as they are, with a tag for viewers."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif, **({"quality": 100} if path.suffix == ".jpg" else {}))


def as_stored(path: Path) -> np.ndarray:
    with Image.open(path) as opened:
        return np.asarray(opened.convert("RGB"))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_frame_with_the_annotations_size_is_read(tmp_path: Path, suffix: str, orientation: int) -> None:
    path = tmp_path / f"a{suffix}"
    save(path, orientation)
    plain = tmp_path / f"plain{suffix}"
    save(plain, 1)
    stored = as_stored(plain)
    with Image.open(path) as opened:
        shown = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    np.testing.assert_array_equal(turn(stored, orientation), shown)
    np.testing.assert_array_equal(turn_back(shown, orientation), stored)
    with open_image(path) as opened:
        frame = read_frame(opened)
    assert (frame.stored, frame.shown) == (stored.shape[:2], shown.shape[:2])
    np.testing.assert_array_equal(read_picture(path), shown)
    if orientation not in (2, 3, 4):
        np.testing.assert_array_equal(read_image(path, *shown.shape[:2]), shown)
        np.testing.assert_array_equal(read_image(path, *stored.shape[:2]), stored)
        frame.require(stored.shape[:2], "a")
        frame.require(shown.shape[:2], "a")
    else:
        with pytest.raises(DataError, match=rf"viewers turn(.|\n)*orientation {orientation}"):
            frame.require(stored.shape[:2], "a")
    with pytest.raises(DataError, match="another size than its annotation"):
        frame.require((7, 10), "a")


@pytest.mark.parametrize("orientation", range(2, 9))
def test_square_images_that_viewers_turn_are_refused(tmp_path: Path, orientation: int) -> None:
    save(tmp_path / "a.jpg", orientation, PIXELS[:, :6])
    with open_image(tmp_path / "a.jpg") as opened, pytest.raises(DataError, match="may or may not follow"):
        read_frame(opened).require((6, 6), "a.jpg")


def test_an_exif_chunk_behind_the_pixels_of_a_png_counts(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    behind = chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    write_png(tmp_path / "a.png", PIXELS, RGB, 8, behind=behind)
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png"), np.rot90(PIXELS, -1))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", 10, 6), np.rot90(PIXELS, -1))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", 6, 10), PIXELS)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_damaged_metadata_turn_nothing(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    more = {"lossless": True} if suffix == ".webp" else {}
    for exif in (
        b"Exif\0\0garbage",
        b"Exif\0\0II*\0\xff\xff\xff\x7f",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01",
    ):
        Image.fromarray(PIXELS).save(path, exif=exif, **more)
        with open_image(path) as opened:
            assert read_frame(opened).orientation == 1
        np.testing.assert_array_equal(read_picture(path), as_stored(path))


def test_every_number_but_2_to_8_turns_nothing(tmp_path: Path) -> None:
    for orientation in (0, 9, 65_535):
        save(tmp_path / "a.png", orientation)
        np.testing.assert_array_equal(read_picture(tmp_path / "a.png"), PIXELS)


def masks_root(root: Path, orientation: int, *, turned: bool) -> Masks:
    """Masks drawn on the picture as shown or as stored; the image of train 0 has the tag."""
    stored = Masks(root)
    pixels = PIXELS[:4, :6]
    save(root / "train" / "day" / "00.jpg", orientation, pixels)
    values = turn(stored.values(), orientation) if turned else stored.values()
    stored.save(stored.path("train", 0), np.ascontiguousarray(values))
    return stored


@pytest.mark.parametrize("turned", [False, True])
def test_masks_of_either_frame_lie_on_their_pixels(tmp_path: Path, turned: bool) -> None:
    stored = masks_root(tmp_path / "root", 6, turned=turned)
    options = BootstrapOptions(layout="masks", holdout_fraction=0)
    bootstrap(stored.root, tmp_path / "out", options)
    sample = SegmentationDataset(tmp_path / "out", stored.root, "train")[0]
    image = as_stored(stored.root / "train" / "day" / "00.jpg")
    expected = np.rot90(image, -1) if turned else image
    np.testing.assert_array_equal(sample.image.permute(1, 2, 0).numpy(), expected)
    assert sample.target.shape == expected.shape[:2]
    assert not check_layout(stored.root, "masks").faults


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_masks_whose_frame_is_unknown_stop_bootstrapping(tmp_path: Path, orientation: int) -> None:
    stored = masks_root(tmp_path / "root", orientation, turned=True)
    with pytest.raises(DataError, match=r"its annotation may or may not follow(.|\n)*day/00\.jpg"):
        bootstrap(stored.root, tmp_path / "out", BootstrapOptions(layout="masks"))
    (fault,) = check_layout(stored.root, "masks").faults
    assert fault.file == "train/day/00.jpg"
    assert "mogrify -auto-orient" in fault.remedy


def test_coco_annotations_of_the_shown_size_lie_on_the_shown_picture(tmp_path: Path) -> None:
    coco = Coco(tmp_path / "root")
    path = coco.root / "train2017" / "park" / "1.png"
    save(path, 6, PIXELS)
    coco.files["instances_train2017"]["images"][0] |= {"height": 10, "width": 6}
    for row in coco.files["instances_train2017"]["annotations"][:2]:
        row["segmentation"] = [[0, 0, 6, 0, 6, 2, 0, 2]]
    root = coco.write()
    bootstrap(root, tmp_path / "out", BootstrapOptions(layout="coco", holdout_fraction=0))
    sample = SegmentationDataset(tmp_path / "out", root, "train")[0]
    np.testing.assert_array_equal(sample.image.permute(1, 2, 0).numpy(), np.rot90(PIXELS, -1))
    save(path, 3, PIXELS)
    with pytest.raises(DataError, match="another size than its annotation"):
        bootstrap(root, tmp_path / "out", BootstrapOptions(layout="coco"))
    coco.files["instances_train2017"]["images"][0] |= {"height": 6, "width": 10}
    with pytest.raises(DataError, match="may or may not follow"):
        bootstrap(coco.write(), tmp_path / "out", BootstrapOptions(layout="coco"))
    assert [fault.file for fault in check_layout(root, "coco").faults] == ["train2017/park/1.png"]
