"""Reading one annotation file, for tests."""

from __future__ import annotations

from pathlib import Path

from pipeline.data.annotations.reader import Source, read_files
from pipeline.data.annotations.validation import NOTHING, AnnotationFile, Form, Rows


def read(path: Path, form: Form, folder: str = "", without: Rows = NOTHING) -> AnnotationFile:
    (file,) = read_files([Source(path, form, folder, without)])
    return file


def read_lvis(path: Path, without: Rows = NOTHING) -> AnnotationFile:
    return read(path, "lvis", without=without)


def read_stuff(path: Path) -> AnnotationFile:
    return read(path, "stuff")
