"""What the page is answered: the product's prediction, whatever the picture and the number of classes."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from pipeline.demo import exchange
from pipeline.demo.exchange import answer, class_list, pack, unpack
from pipeline.inference.predictor import Predictor
from pipeline.runtime.errors import DataError, KilosegError, UsageError
from tests.pipeline.inference.conftest import photo


def png(pixels: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", **options)
    return buffer.getvalue()


def parts_of(body: bytes) -> tuple[dict, bytes, np.ndarray, np.ndarray]:
    header, rest = unpack(body)
    ends = np.cumsum(header["parts"])
    picture, ids, confidence = (
        rest[end - size : end] for end, size in zip(ends, header["parts"], strict=True)
    )
    size = (header["shown"]["height"], header["shown"]["width"])
    maps = [np.frombuffer(part, "<u2").reshape(size) for part in (ids, confidence)]
    return header, picture, *maps


def test_an_answer_is_the_products_prediction(predictor: Predictor) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    data = png(photo(40, 62), exif=exif)
    header, picture, class_map, confidence = parts_of(answer(predictor, pack({"name": "a.png"}, data)))
    expected = predictor(np.rot90(photo(40, 62), -1))
    np.testing.assert_array_equal(class_map, expected.class_map)
    np.testing.assert_allclose(confidence / 65_535, expected.confidence, atol=1e-5)
    assert header["classes"] == expected.to_dict()["classes"]
    with Image.open(io.BytesIO(picture)) as shown:
        assert np.abs(np.asarray(shown).astype(int) - expected.image).mean() < 8


def test_classes_restrict_the_search(predictor: Predictor) -> None:
    data = png(photo(40, 62))
    _, _, class_map, _ = parts_of(answer(predictor, pack({"classes": [300, 1284]}, data)))
    np.testing.assert_array_equal(class_map, predictor.searching([300, 1284])(photo(40, 62)).class_map)
    assert set(np.unique(class_map)) <= {300, 1284}


def test_a_large_picture_is_shown_smaller_and_counted_whole(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "SHOWN", 50)
    header, picture, class_map, _ = parts_of(answer(predictor, pack({}, png(photo(80, 100)))))
    expected = predictor(photo(80, 100))
    assert class_map.shape == (40, 50)
    np.testing.assert_array_equal(class_map, expected.class_map[1::2, 1::2])
    assert sum(row["pixels"] for row in header["classes"]) == 8_000
    assert Image.open(io.BytesIO(picture)).size == (50, 40)


@pytest.mark.parametrize(
    ("body", "kind", "said"),
    [
        (pack({"name": "notes.txt"}, b"hello"), DataError, "notes.txt"),
        (pack({"name": "cut.png"}, png(photo(40, 62))[:900]), DataError, "cut.png"),
        (pack({"name": "empty.png"}), DataError, "empty.png"),
        (pack({"classes": [1, 1285]}, png(photo(9, 9))), UsageError, "no such class"),
        (pack({"classes": "dog"}, png(photo(9, 9))), UsageError, "not a list of class ids"),
        (b"", UsageError, "not a request"),
        (b"\xff\xff\xff\xff{}", UsageError, "not a request"),
        (png(photo(9, 9)), UsageError, "not a request"),
    ],
)
def test_mistakes_are_named(predictor: Predictor, body: bytes, kind: type[KilosegError], said: str) -> None:
    with pytest.raises(kind, match=said) as raised:
        answer(predictor, body)
    assert "/tmp" not in str(raised.value)


def test_all_classes_are_listed_with_a_color_each(predictor: Predictor) -> None:
    listed = json.loads(json.dumps(class_list(predictor)))["classes"]
    assert len(listed) == 1284
    assert [listed[0][:2], listed[-1][0]] == [[1, predictor.label_space.names[0]], 1284]
    assert all(len(color) == 7 for _, _, color in listed)
