"""The number stored in a mask is what counts, whatever its file is; what could mean two is refused."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.bootstrap.build import bootstrap
from pipeline.data.bootstrap.options import BootstrapOptions
from pipeline.data.layouts.layout import StoredMask
from pipeline.data.layouts.mask_values import mask_values
from pipeline.runtime.errors import DataError
from tests.pipeline.data.layouts.png_writer import GRAY, GRAY_ALPHA, PALETTE, RGB, write_png
from tests.pipeline.data.layouts.small_layouts import Masks, masks_of

SIZE = (11, 13)


def numbers(bits: int) -> np.ndarray:
    values = np.random.default_rng(bits).integers(0, 2 ** min(bits, 16), SIZE)
    values.flat[:2] = 0, 2 ** min(bits, 16) - 1
    return values


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("transparent", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_gray_pngs_of_every_depth_give_the_stored_numbers(
    tmp_path: Path, bits: int, interlaced: bool, transparent: bool
) -> None:
    path, values = tmp_path / "a.png", numbers(bits)
    key = struct.pack(">H", 1) if transparent else None
    write_png(path, values, GRAY, bits, interlaced=interlaced, transparent=key)
    np.testing.assert_array_equal(mask_values(path), values)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palettes_count_by_their_indices(tmp_path: Path, bits: int, interlaced: bool) -> None:
    path, values = tmp_path / "a.png", numbers(bits)
    palette = np.random.default_rng(0).integers(0, 256, (2**bits, 3))
    write_png(
        path, values, PALETTE, bits, palette=palette, interlaced=interlaced, transparent=bytes(range(2**bits))
    )
    np.testing.assert_array_equal(mask_values(path, range(256)), values)


@pytest.mark.parametrize(
    ("grays", "listed", "expected"),
    [
        ([0, 1, 2], range(3), "indices"),  # shown as themselves
        ([2, 0, 1], range(3), None),  # sorted anew: both readings are in the list
        ([0, 1, 255], {0, 1, 255}, "grays"),  # 2 is not in the list
        ([0, 127, 254], range(3), "indices"),  # spread to be seen
        ([0, 127, 254], range(256), None),
        ([7, 7, 7], range(256), "indices"),  # no gray mask was ever saved so
    ],
)
def test_a_palette_of_grays_is_resolved_by_the_list_or_refused(
    tmp_path: Path, grays: list[int], listed: set[int], expected: str | None
) -> None:
    path, indices = tmp_path / "a.png", np.arange(3).repeat(4).reshape(3, 4)
    write_png(path, indices, PALETTE, 8, palette=np.array(grays)[:, None].repeat(3, axis=1))
    if expected is None:
        with pytest.raises(DataError, match="palette of grays that could mean two"):
            mask_values(path, listed)
        return
    np.testing.assert_array_equal(
        mask_values(path, listed), {"indices": indices, "grays": np.array(grays)[indices]}[expected]
    )


def test_gray_with_alpha_is_read_where_all_is_opaque(tmp_path: Path) -> None:
    values = numbers(8)
    write_png(tmp_path / "a.png", np.dstack([values, np.full(SIZE, 255)]), GRAY_ALPHA, 8)
    np.testing.assert_array_equal(mask_values(tmp_path / "a.png"), values)
    write_png(tmp_path / "b.png", np.dstack([values, values]), GRAY_ALPHA, 8)
    with pytest.raises(DataError, match=r"transparency(.|\n)*not opaque"):
        mask_values(tmp_path / "b.png")
    write_png(tmp_path / "c.png", np.dstack([values, values]), GRAY_ALPHA, 16)
    with pytest.raises(DataError, match="in colors or with transparency"):
        mask_values(tmp_path / "c.png")
    write_png(tmp_path / "d.png", np.dstack([values, values, values]), RGB, 8)
    with pytest.raises(DataError, match="a mask in colors"):
        mask_values(tmp_path / "d.png")


def tiff(path: Path, raster: bytes, tags: dict[int, tuple[int, int]], order: str = "<") -> None:
    """A TIFF of one strip, written by hand; tags of (type 3 or 4, value)."""
    rows = sorted({**tags, 273: (4, 8), 279: (4, len(raster)), 278: (4, SIZE[0])}.items())
    start = 8 + len(raster) + len(raster) % 2
    content = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", start) + raster
    content += b"\0" * (len(raster) % 2) + struct.pack(order + "H", len(rows))
    for tag, (kind, value) in rows:
        content += struct.pack(order + "HHI", tag, kind, 1)
        content += struct.pack(order + ("H2x" if kind == 3 else "I"), value)
    path.write_bytes(content + struct.pack(order + "I", 0))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("photometric", [0, 1])
def test_tiffs_of_few_bits_give_the_stored_numbers(
    tmp_path: Path, bits: int, photometric: int, order: str
) -> None:
    values = numbers(bits)
    digits = (values[:, :, None] >> np.arange(bits)[::-1]) & 1
    raster = np.packbits(digits.reshape(SIZE[0], -1).astype(np.uint8), axis=1).tobytes()
    base = {256: (4, SIZE[1]), 257: (4, SIZE[0]), 258: (3, bits), 259: (3, 1), 262: (3, photometric)}
    tiff(tmp_path / "a.tif", raster, base | {277: (3, 1)}, order)
    np.testing.assert_array_equal(mask_values(tmp_path / "a.tif"), values)


@pytest.mark.parametrize(
    ("kind", "sample_format"), [("i1", 2), ("u2", 1), ("i2", 2), ("u4", 1), ("i4", 2), ("f4", 3)]
)
@pytest.mark.parametrize("order", ["<", ">"])
def test_tiffs_of_numbers_with_a_sign_more_bits_or_as_floats(
    tmp_path: Path, kind: str, sample_format: int, order: str
) -> None:
    values = np.arange(-3 if "i" in kind else 0, 140)[: SIZE[0] * SIZE[1]]
    values = np.resize(values.clip(max=127) if kind == "i1" else values, SIZE)
    base = {256: (4, SIZE[1]), 257: (4, SIZE[0]), 258: (3, 8 * int(kind[1])), 259: (3, 1), 262: (3, 1)}
    raster = values.astype(order + kind).tobytes()
    tiff(tmp_path / "a.tif", raster, base | {277: (3, 1), 339: (3, sample_format)}, order)
    if kind == "u4" and order == ">":  # Pillow knows no such file
        with pytest.raises(DataError, match="unreadable mask"):
            mask_values(tmp_path / "a.tif")
        return
    np.testing.assert_array_equal(mask_values(tmp_path / "a.tif"), values)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_deflate", "packbits", "group4"])
def test_compressed_tiffs_and_bmps(tmp_path: Path, compression: str) -> None:
    values = numbers(1 if compression == "group4" else 8)
    image = Image.fromarray(values.astype(np.uint8))
    if compression == "group4":
        image = Image.fromarray(values.astype(bool))
    image.save(tmp_path / "a.tif", compression=compression)
    np.testing.assert_array_equal(mask_values(tmp_path / "a.tif"), values)
    image.save(tmp_path / "a.bmp")
    np.testing.assert_array_equal(mask_values(tmp_path / "a.bmp"), values)


def test_files_that_change_or_hide_numbers_are_refused_by_name(tmp_path: Path) -> None:
    flat = Image.new("L", SIZE[::-1], 3)
    flat.save(tmp_path / "a.png", format="JPEG")
    flat.save(tmp_path / "b.tif", compression="jpeg")
    flat.convert("RGB").save(tmp_path / "c.webp", quality=90)
    for name in ("a.png", "b.tif", "c.webp"):
        with pytest.raises(DataError, match=rf"lossy format(.|\n)*{name}"):
            mask_values(tmp_path / name)
    flat.convert("RGB").save(tmp_path / "d.webp", lossless=True)
    with pytest.raises(DataError, match="a mask in colors"):
        mask_values(tmp_path / "d.webp")
    flat.save(tmp_path / "e.tif", save_all=True, append_images=[flat])
    with pytest.raises(DataError, match=r"several pictures(.|\n)*2 pages"):
        mask_values(tmp_path / "e.tif")
    exif = Image.Exif()
    exif[0x0112] = 3
    flat.save(tmp_path / "f.png", exif=exif)
    with pytest.raises(DataError, match=r"viewers turn(.|\n)*orientation 3"):
        mask_values(tmp_path / "f.png")
    Image.fromarray(np.full(SIZE, 0.5, np.float32)).save(tmp_path / "g.tif")
    with pytest.raises(DataError, match=r"a mask of fractions(.|\n)*0\.5"):
        mask_values(tmp_path / "g.tif")


@pytest.mark.parametrize(
    ("stored", "listed", "words"),
    [
        ([0, 1, 2], [0, 17, 34], r"34 for the 2 that is stored.*factor of 17"),
        ([0, 1], [0, 255], r"255 for the 1 that is stored"),
        ([0, 85, 170], [0, 1, 2], r"all by 85 \(170 for 2\)"),
        ([0, 3, 9], [0, 1, 2], r"fix:     add it to the list"),
    ],
)
def test_a_list_that_cannot_be_right_is_named(
    tmp_path: Path, stored: list[int], listed: list[int], words: str
) -> None:
    write_png(tmp_path / "a.png", np.array([stored]), GRAY, 8)
    mask = StoredMask(tmp_path / "a.png", dict.fromkeys(listed, 1))
    with pytest.raises(DataError, match=words):
        mask.read(1, len(stored))


@pytest.mark.parametrize("bits", [2, 4])
def test_masks_of_few_bits_through_the_whole_chain(tmp_path: Path, bits: int) -> None:
    stored = Masks(tmp_path / "root")
    values = np.arange(24).reshape(4, 6) % 3
    for split, number in (("train", 4), ("val", 2)):
        for index in range(number):
            write_png(stored.path(split, index), values, GRAY, bits)
    stored.write_classes([(value, f"class {value}") for value in range(256)])
    bootstrap(stored.root, tmp_path / "out", BootstrapOptions(layout="masks"))
    for mask in masks_of(tmp_path / "out", stored.root).values():
        np.testing.assert_array_equal(mask, values + 1)


@pytest.mark.parametrize(("factor", "is_warned"), [(1, False), (85, True)])
def test_values_that_are_all_scaled_are_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], factor: int, is_warned: bool
) -> None:
    """The list has 0 to 255, so that 0, 85 and 170 are in it as well as 0, 1 and 2."""
    stored = Masks(tmp_path / "root")
    for split, number in (("train", 4), ("val", 2)):
        for index in range(number):
            write_png(stored.path(split, index), np.arange(24).reshape(4, 6) % 3 * factor, GRAY, 8)
    stored.write_classes([(value, f"class {value}") for value in range(256)])
    bootstrap(stored.root, tmp_path / "out", BootstrapOptions(layout="masks"))
    assert ("multiples of 85 (0, 85, 170)" in capsys.readouterr().err) is is_warned
