"""Lists of classes as spreadsheets and tools save them, and what is wrong with them, by file and line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.data.layouts.class_lists import read_classes, read_id2label, read_labelmap
from pipeline.runtime.errors import DataError

Read = Callable[[Path], Any]


@pytest.mark.parametrize(
    "content",
    [
        b"value,name\n0,\n7,caf\xc3\xa9\n",
        b"\xef\xbb\xbfvalue,name\r\n0,\r\n7,caf\xc3\xa9\r\n",
        b"\xef\xbb\xbfvalue;name\r\n0;\r\n7;caf\xc3\xa9\r\n",
        b"name\tvalue\n\t0\ncaf\xc3\xa9\t7\n",
    ],
)
def test_a_list_as_spreadsheets_save_it(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "classes.csv").write_bytes(content)
    assert read_classes(tmp_path / "classes.csv") == ([(0, ""), (7, "café")], False)


def test_labelmaps_and_label_objects_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("# label:color_rgb:parts:actions\nsky:1,2,3::\n", encoding="utf-8-sig")
    assert read_labelmap(path) == [(0x010203, "sky")]
    path.write_text('{"0": "wall", "3": "sky"}', encoding="utf-8-sig")
    assert read_id2label(path) == [(0, "wall"), (3, "sky")]


@pytest.mark.parametrize(
    ("read", "content", "words"),
    [
        (read_classes, b"value,name\n0,a\n1,b\n0,c\n", ["lines 2 and 4", "0: 'a' and 'c'", "listed twice"]),
        (read_classes, b"color,name\n#0000ff,a\n0000FF,b\n", ["lines 2 and 3", "#0000ff: 'a' and 'b'"]),
        (read_classes, b"value,label\n0,a\n", ["a damaged list", "value,label", "value,name"]),
        (read_classes, "value,name\n0,a\n".encode("utf-16"), ["no readable list", "UTF-8"]),
        (read_classes, b"value,name\n0,stra\xdfe\n", ["no readable list", "UTF-8"]),
        (read_classes, b"value,name\n1.5,a\n", ["line 2: 1.5,a"]),
        (read_labelmap, b"a:0,0,9::\nb:0,0,9::\n", ["lines 1 and 2", "#000009: 'a' and 'b'"]),
        (read_labelmap, b"a\xdf:0,0,9::\n", ["no readable list"]),
        (read_id2label, b'{"1": "a", "01": "b"}', ["listed twice", "1: 'a' and 'b'"]),
        (read_id2label, b'{"1": "a", "1": "b"}', ["listed twice"]),
        (read_id2label, b'{"1": "\\ud83d"}', ["no Unicode text"]),
        (read_id2label, b'{"70000": "a"}', ["out of range"]),
        (read_id2label, b'[["1", "a"]]', ["no JSON object"]),
    ],
)
def test_a_damaged_list_is_one_error_with_its_file(
    tmp_path: Path, read: Read, content: bytes, words: list[str]
) -> None:
    path = tmp_path / "the list"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(path)
    for word in [str(path), *words]:
        assert word in str(caught.value)
