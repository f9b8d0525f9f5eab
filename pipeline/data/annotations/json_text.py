"""Find the parts of JSON text without building their values, and parse the parts that are asked for.

Python's json module writes NaN, Infinity and lone surrogates, which JSON forbids and msgspec refuses. Such
text is split by a copy in which they are replaced by other JSON of the same length, so places stay the same.
"""

from __future__ import annotations

import codecs
import json
import re
from mmap import mmap
from typing import Any, TypeAlias, TypeVar

import msgspec
import numpy as np

Text: TypeAlias = bytes | memoryview | mmap
"""JSON text, or a part of it as `msgspec.Raw`, which its types call bytes."""
REFUSALS = (msgspec.MsgspecError, ValueError, RecursionError)
"""What parsing may raise: not JSON or of another type, not UTF-8, nested too deep."""
Parts = TypeVar("Parts", list[msgspec.Raw], dict[str, msgspec.Raw])


class JsonText:
    """JSON text and the places of its parts.

    Args:
        text: a whole file, or a part of one. A byte order mark, which some editors write, is passed over.
    """

    def __init__(self, text: Text) -> None:
        self._skipped = len(codecs.BOM_UTF8) if text[:3] == codecs.BOM_UTF8 else 0
        self.text = memoryview(text)[self._skipped :] if self._skipped else text
        self.is_replaced = False  # whether a copy was split, with other JSON in some places
        self._base = 0  # memory address of what was split

    def split(self, kind: type[Parts]) -> Parts:
        """Return the elements of a list or the values of an object.

        Raises:
            msgspec.MsgspecError: not JSON, or of another kind.
            RecursionError: nested too deep.
        """
        text = self.text
        try:
            parts = msgspec.json.decode(text, type=kind)
        except msgspec.DecodeError:
            text, self.is_replaced = _without_extensions(bytes(text)), True
            parts = msgspec.json.decode(text, type=kind)
        self._base = _address(text)
        return parts

    def place(self, part: Text) -> int:
        """Return the first byte of a part, which `split` or decoding a part gave, in the whole file."""
        return _address(part) - self._base + self._skipped

    def original(self, part: Text) -> Text:
        """Return the text of a part, nothing in it replaced."""
        if not self.is_replaced:
            return part
        start = self.place(part) - self._skipped
        return memoryview(self.text)[start : start + len(part)]


def _address(text: Text) -> int:
    address: int = np.frombuffer(text, np.uint8).__array_interface__["data"][0]
    return address


_STRING_OR_NUMBER = re.compile(rb'"(?:[^"\\]|\\.)*"|NaN|-?Infinity', re.DOTALL)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")


def _without_extensions(text: bytes) -> bytes:
    """Replace NaN and Infinity by strings, and surrogates in strings by blanks, all of the same length."""

    def replacement(match: re.Match[bytes]) -> bytes:
        token = match[0]
        if token[:1] == b'"':
            return _SURROGATE.sub(rb"\\u0020", token)
        return b'"' + b"x" * (len(token) - 2) + b'"'

    return _STRING_OR_NUMBER.sub(replacement, text)


def parse(text: Text) -> Any:
    """Return the value of JSON text as plain types; like Python's json it may hold NaN and Infinity.

    Raises:
        ValueError: not JSON.
        RecursionError: nested too deep.
    """
    try:
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return json.loads(bytes(text).decode())


def check_utf8(text: Text) -> None:
    """Raise UnicodeDecodeError where text is not UTF-8; msgspec does not look into what it skips."""
    decoder, view = codecs.getincrementaldecoder("utf-8")(), memoryview(text)
    for start in range(0, len(view), 2**20):
        decoder.decode(view[start : start + 2**20])
    decoder.decode(b"", final=True)


def kind_of(value: object) -> str:
    """Return what JSON calls a value: "a list", "null", "a number"."""
    names = {dict: "an object", list: "a list", str: "a string", type(None): "null", bool: "true or false"}
    return names.get(type(value), "a number")
