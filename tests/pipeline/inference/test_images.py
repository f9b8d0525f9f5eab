"""Pictures of every kind are read upright and in color, and bad files are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.inference.images import as_pixels, as_tensor, read_picture
from pipeline.runtime.errors import DataError, UsageError
from tests.pipeline.inference.conftest import photo

UPRIGHT = photo(30, 46)


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "ppm", "webp"])
def test_lossless_files_come_back_as_they_were(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(UPRIGHT).save(path, **({"lossless": True} if suffix == "webp" else {}))
    np.testing.assert_array_equal(read_picture(path), UPRIGHT)


@pytest.mark.parametrize(
    ("orientation", "stored"),
    [
        (1, UPRIGHT),
        (2, UPRIGHT[:, ::-1]),
        (3, UPRIGHT[::-1, ::-1]),
        (4, UPRIGHT[::-1]),
        (5, UPRIGHT.transpose(1, 0, 2)),
        (6, np.rot90(UPRIGHT)),
        (7, UPRIGHT[::-1, ::-1].transpose(1, 0, 2)),
        (8, np.rot90(UPRIGHT, -1)),
    ],
)
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, stored: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png"), UPRIGHT)


def test_gray_palette_alpha_and_bilevel_pictures_become_rgb(tmp_path: Path) -> None:
    color = Image.fromarray(UPRIGHT)
    gray = np.asarray(color.convert("L"))
    for mode, want in (
        ("L", gray[:, :, None].repeat(3, axis=2)),
        ("LA", gray[:, :, None].repeat(3, axis=2)),
        ("P", np.asarray(color.convert("P").convert("RGB"))),
        ("RGBA", UPRIGHT),
        ("1", np.asarray(color.convert("1").convert("RGB"))),
    ):
        color.convert(mode).save(tmp_path / "a.png")
        np.testing.assert_array_equal(read_picture(tmp_path / "a.png"), want)


def test_transparency_is_dropped_as_in_training(tmp_path: Path) -> None:
    see_through = Image.fromarray(UPRIGHT).convert("RGBA")
    see_through.putalpha(0)
    see_through.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png"), UPRIGHT)
    palette = Image.fromarray(UPRIGHT).convert("P")
    want = np.asarray(palette.convert("RGB"))
    palette.save(tmp_path / "b.png", transparency=bytes(range(256)))
    np.testing.assert_array_equal(read_picture(tmp_path / "b.png"), want)


def test_cmyk_jpeg_is_close_to_the_color_picture(tmp_path: Path) -> None:
    flat = np.full((16, 16, 3), (200, 40, 90), np.uint8)
    Image.fromarray(flat).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    with Image.open(tmp_path / "a.jpg") as opened:
        assert opened.mode == "CMYK"
    assert np.abs(read_picture(tmp_path / "a.jpg").astype(int) - flat).max() <= 6


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_gray_keeps_its_range(tmp_path: Path, suffix: str) -> None:
    values = np.linspace(0, 65_535, 12 * 20).round().astype(np.uint16).reshape(12, 20)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    want = np.rint(values / 257)[:, :, None].repeat(3, axis=2)
    np.testing.assert_array_equal(read_picture(tmp_path / f"a.{suffix}"), want)


def test_float_gray_is_taken_from_zero_to_one_only(tmp_path: Path) -> None:
    Image.fromarray(np.linspace(0, 1, 40, dtype=np.float32).reshape(5, 8)).save(tmp_path / "a.tif")
    assert read_picture(tmp_path / "a.tif")[-1, -1].tolist() == [255] * 3
    Image.fromarray(np.full((5, 8), 300, dtype=np.float32)).save(tmp_path / "b.tif")
    with pytest.raises(DataError, match=r"b\.tif(.|\n)*from 300"):
        read_picture(tmp_path / "b.tif")


def test_the_first_frame_of_an_animation_is_taken(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((9, 9, 3), value, np.uint8)) for value in (10, 250)]
    for name in ("a.gif", "a.webp", "a.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], duration=50, lossless=True)
        assert (read_picture(tmp_path / name) == 10).all(), name


def test_one_pixel(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png").tolist() == [[[1, 2, 3]]]


def test_bad_files_are_named_with_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing picture(.|\n)*none\.jpg"):
        read_picture(tmp_path / "none.jpg")
    (tmp_path / "text.jpg").write_text("not a picture")
    with pytest.raises(DataError, match=r"unreadable picture(.|\n)*text\.jpg(.|\n)*convert it"):
        read_picture(tmp_path / "text.jpg")
    (tmp_path / "empty.png").touch()
    with pytest.raises(DataError, match=r"unreadable picture(.|\n)*empty\.png"):
        read_picture(tmp_path / "empty.png")
    for name in ("cut.jpg", "cut.png"):
        Image.fromarray(photo(200, 200)).save(tmp_path / name)
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(DataError, match=rf"unreadable picture(.|\n)*{name}"):
            read_picture(tmp_path / name)
    with pytest.raises(DataError, match=r"(unreadable|missing) picture"):
        read_picture(tmp_path)


def test_arrays_and_tensors_of_all_kinds_are_the_same_picture() -> None:
    as_floats = UPRIGHT.astype(np.float32) / 255
    channels_first = torch.from_numpy(UPRIGHT).permute(2, 0, 1)
    for image in (
        UPRIGHT,
        as_floats,
        UPRIGHT.astype(np.uint16) * 257,
        np.dstack([UPRIGHT, np.zeros(UPRIGHT.shape[:2], np.uint8)]),
        channels_first,
        channels_first.float() / 255,
        Image.fromarray(UPRIGHT),
        as_tensor(UPRIGHT),
    ):
        np.testing.assert_array_equal(as_pixels(image), UPRIGHT)
    gray = UPRIGHT[:, :, 0]
    np.testing.assert_array_equal(as_pixels(gray), gray[:, :, None].repeat(3, axis=2))


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((3, 4, 5), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 3), np.int64),
        np.full((4, 4, 3), 1.5),
        np.full((4, 4, 3), np.nan),
        torch.zeros(4, 4, 3, dtype=torch.uint8),
        5,
    ],
)
def test_what_is_no_image_is_refused(image: object) -> None:
    with pytest.raises(UsageError, match="image"):
        as_pixels(image)  # type: ignore[arg-type]
