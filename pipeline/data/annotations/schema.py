"""Define the rows of annotation files, decode them, and name what is wrong with one that does not decode.

msgspec checks keys and types, and skips what is not asked for. Where it refuses a row, the first wrong key of
the row's plain values is named.
"""

from __future__ import annotations

import functools
from typing import Annotated, Any, TypeVar

import msgspec

from pipeline.data.annotations.json_text import REFUSALS, JsonText, Text, kind_of, parse
from pipeline.runtime.errors import DataError

RESTORE = "take the file from its source again, or export it anew"

Integer = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Row = TypeVar("Row", bound=msgspec.Struct)
_NAMED_BY_ID = {"images": "image", "annotations": "annotation"}


@functools.cache
def _decoder(kind: type[Row]) -> msgspec.json.Decoder[Row]:
    return msgspec.json.Decoder(kind)


class CategoryRow(msgspec.Struct):
    """A category."""

    id: Integer
    name: str


class LvisCategoryRow(CategoryRow):
    """A category of LVIS: rare, common or frequent."""

    frequency: str


class ImageRow(msgspec.Struct):
    """An image; height and width in pixels."""

    id: Integer
    height: Integer
    width: Integer


class LvisImageRow(ImageRow):
    """An image of LVIS, found by its address at COCO, and the categories of which more is known there.

    Files in LVIS's form may lack these lists; then no class counts as looked for where it is not annotated.
    """

    coco_url: str
    neg_category_ids: list[Integer] = []
    not_exhaustive_category_ids: list[Integer] = []


class CocoImageRow(ImageRow):
    """An image in any file of COCO's form."""

    file_name: str


class AnnotationRow(msgspec.Struct):
    """An annotation; its segmentation stays text until it is drawn."""

    id: Integer
    image_id: Integer
    category_id: Integer
    segmentation: msgspec.Raw = msgspec.Raw(b"")


def decode_row(text: JsonText, part: Text, kind: type[Row], where: str, place: int) -> Row | DataError:
    """Decode one row, or return what is wrong with it.

    Args:
        text: that the row is a part of.
        part: the row.
        kind: what it must be.
        where: the file and the list, "train.json: images".
        place: of the row in the list.
    """
    try:
        decoded = _decoder(kind).decode(part)
        if text.is_replaced and kind is not AnnotationRow:  # a name in it may have been changed for the split
            return _first_fault(parse(text.original(part)), kind, where, place) or decoded
        return decoded
    except REFUSALS:
        try:
            row = parse(text.original(part))
        except REFUSALS as unreadable:
            row, error = None, unreadable
        else:
            if fault := _first_fault(row, kind, where, place):
                return fault
        found = f"{kind_of(row)}: {error}" if row is not None else error
        return DataError("an unreadable entry", where=f"{where}[{place}]", found=found, hint=RESTORE)


def _first_fault(row: Any, kind: type[msgspec.Struct], where: str, place: int) -> DataError | None:
    """Name the first key of a row that is missing or has a value of the wrong type."""
    file, _, rows = where.rpartition(": ")
    where = f"{where}[{place}]"
    if not isinstance(row, dict):
        return DataError(
            "not an entry", where=where, found=kind_of(row), allowed="a JSON object", hint=RESTORE
        )
    for field in msgspec.structs.fields(kind):
        if field.name not in row:
            if field.required:
                return missing_key(field.name, where, row)
            continue
        value = row[field.name]
        if field.type is str and not isinstance(value, str):
            return _wrong(field.name, where, value, "a string")
        if isinstance(value, str) and not is_unicode(value):
            return _wrong(field.name, where, value, "text that can be written as UTF-8")
        if field.type == Integer:
            if type(value) is not int:  # a bool is none
                return _wrong(field.name, where, value, "a whole number")
            if not -(2**63) <= value < 2**63:
                allowed = "a whole number of at most 64 bits with its sign, up to 9223372036854775807"
                hint = "number images, annotations and categories from 1 on instead of by hashes"
                return _wrong(field.name, where, value, allowed, hint)
        if field.name == "id" and rows in _NAMED_BY_ID:
            where = f"{file}: {_NAMED_BY_ID[rows]} {value}"
    return None


def is_unicode(text: str) -> bool:
    """Whether text can be written as UTF-8; JSON's escapes can spell halves of surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def missing_key(key: str, where: str, row: dict[str, Any]) -> DataError:
    """Return the error of a row without a key."""
    found = f"only {', '.join(sorted(row)) or 'an empty object'}"
    return DataError(f"the key {key!r} is missing", where=where, found=found, hint=RESTORE)


def _wrong(key: str, where: str, value: object, allowed: str, hint: str = RESTORE) -> DataError:
    found = ascii(value) if isinstance(value, str | int | float | bool | None) else kind_of(value)
    found = found if len(found) <= 80 else f"{found[:77]}..."
    what = f"the key {key!r} has a wrong value"
    return DataError(what, where=where, found=found, allowed=allowed, hint=hint)
