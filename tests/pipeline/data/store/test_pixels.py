"""Photographs of more than 8 bits are scaled by one rule or refused by name, and large ones are opened."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.bootstrap.build import bootstrap
from pipeline.data.bootstrap.options import BootstrapOptions
from pipeline.data.check.layouts import check_layout
from pipeline.data.loading.dataset import SegmentationDataset, read_image
from pipeline.data.store.images import LARGEST, open_image
from pipeline.inference.images import read_picture
from pipeline.runtime.errors import DataError
from tests.pipeline.data.layouts.png_writer import GRAY, RGB, chunk, write_png
from tests.pipeline.data.layouts.small_layouts import Coco

RAMP = np.linspace(0, 65_535, 64).round().astype(np.uint16).reshape(8, 8)
EXPECTED = np.rint(RAMP / 257).astype(np.uint8)


def save_ramp(path: Path, kind: str) -> None:
    if kind == "16 bits":
        write_png(path, RAMP, GRAY, 16)
    elif kind == "16 bits in color":
        write_png(path, np.dstack([RAMP, RAMP, RAMP]), RGB, 16)
    elif kind == "16 bits, big-endian":
        Image.frombytes("I;16B", RAMP.shape, RAMP.astype(">u2").tobytes()).save(path, format="TIFF")
    elif kind == "32 bits":
        Image.fromarray(RAMP.astype(np.int32)).save(path, format="TIFF")
    elif kind == "floats":
        Image.fromarray((RAMP / 65_535).astype(np.float32)).save(path, format="TIFF")
    elif kind == "4 bits":
        write_png(path, RAMP // 4096, GRAY, 4)


@pytest.mark.parametrize(
    "kind", ["16 bits", "16 bits in color", "16 bits, big-endian", "32 bits", "floats", "4 bits"]
)
def test_a_ramp_stays_a_ramp_in_training_and_in_prediction(tmp_path: Path, kind: str) -> None:
    coco = Coco(tmp_path / "root")
    path = coco.root / "train2017" / "park" / "1.png"
    save_ramp(path, kind)
    bootstrap(coco.write(), tmp_path / "out", BootstrapOptions(layout="coco", holdout_fraction=0))
    read = SegmentationDataset(tmp_path / "out", coco.root, "train")[0].image.permute(1, 2, 0).numpy()
    expected = EXPECTED if kind != "4 bits" else RAMP // 4096 * 17
    assert np.abs(read.astype(int) - expected[:, :, None]).max() <= (1 if "color" in kind else 0)
    np.testing.assert_array_equal(read, read_picture(path))
    assert not check_layout(coco.root, "coco").faults


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.arange(64, dtype=np.int32) * 100_000, "whole numbers from 0 to 6.3e"),
        (np.arange(64, dtype=np.int32) - 9, "whole numbers from -9 to 54"),
        (np.arange(64, dtype=np.uint16), "whole numbers from 0 to 63"),  # 8 bits kept in 16
        (np.arange(64, dtype=np.float32), "floats from 0 to 63"),
        (np.full(64, np.nan, np.float32), "floats from nan to nan"),
    ],
)
def test_numbers_without_a_clear_range_are_refused_by_name(
    tmp_path: Path, values: np.ndarray, words: str
) -> None:
    coco = Coco(tmp_path / "root")
    path = coco.root / "train2017" / "park" / "1.png"
    Image.fromarray(values.reshape(8, 8)).save(path, format="TIFF")
    for read in (
        lambda: bootstrap(coco.write(), tmp_path / "out", BootstrapOptions(layout="coco")),
        lambda: read_image(path, 8, 8),
        lambda: read_picture(path),
    ):
        with pytest.raises(DataError) as caught:
            read()
        assert words in str(caught.value)
        assert str(path) in str(caught.value)
    assert [fault.kind for fault in check_layout(coco.root, "coco").faults] == [
        "an image whose numbers have no clear range"
    ]


def test_black_stays_black(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "a.png")
    assert not read_image(tmp_path / "a.png", 4, 4).any()


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_pictures_beyond_pillows_limit_are_opened_and_huge_ones_refused(tmp_path: Path, suffix: str) -> None:
    write_png(tmp_path / "a.png", np.zeros((1, 1), int), GRAY, 1)
    content = (tmp_path / "a.png").read_bytes()
    for width, height in ((13_500, 13_500), (40_000, 40_000)):
        path = tmp_path / f"{width}.{suffix}"
        if suffix == "png":  # the header alone; pixels are not asked for
            header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + content[24:29]
            path.write_bytes(content[:8] + chunk(b"IHDR", header) + content[33:])
        else:
            Image.new("1", (8, 8)).save(path)
            head = bytearray(path.read_bytes())
            for tag, value in ((256, width), (257, height)):
                at = head.index(tag.to_bytes(2, "little") + (4).to_bytes(2, "little"))
                head[at + 8 : at + 12] = value.to_bytes(4, "little")
            path.write_bytes(head)
        if width * height < LARGEST:
            with open_image(path) as opened:
                assert opened.size == (width, height)
        else:
            with pytest.raises(DataError, match=r"an image that is too large(.|\n)*1,600 million"):
                open_image(path).__enter__()
