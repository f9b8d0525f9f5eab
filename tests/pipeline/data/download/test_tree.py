"""Archives that unpack with their folders: zip, tar and tgz, verified by what is published of each."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import re
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli.data import app
from pipeline.data.download.archives import BROUGHT, DATASETS, Archive
from pipeline.data.download.fetch import fetch, plan
from pipeline.runtime.errors import DataError, UsageError
from tests.pipeline.data.download.unkind_server import Unkind, serve

FILES = {f"top/inner/{place}/{i}.png": bytes([i]) * 500 for place in ("a", "b") for i in range(4)} | {
    "top/readme.txt": b"read"
}


def packed(kind: str, files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return buffer.getvalue()
    with tarfile.open(fileobj=buffer, mode="w:gz" if kind == "tgz" else "w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Unkind]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serve({f"set.{kind}": packed(kind, FILES) for kind in ("zip", "tar", "tgz")}) as unkind:
        yield unkind


def published(server: Unkind, kind: str) -> Archive:
    digest = hashlib.md5(server.files[f"set.{kind}"]).hexdigest()
    return Archive(
        "set", f"{server.url}/set.{kind}", ("top/inner/",), "top/inner", md5=digest, tree=True, about=5000
    )


def files_in(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file() and "archives" not in path.parts)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("kind", ["zip", "tar", "tgz"])
def test_a_tree_is_unpacked_as_it_is_and_only_once(server: Unkind, tmp_path: Path, kind: str) -> None:
    archive, root = published(server, kind), tmp_path / "root"
    assert fetch(root, [archive]) == 1
    assert files_in(root) == FILES
    assert fetch(root, [archive]) == 0
    (root / "top/inner/a/2.png").unlink()
    assert [one.name for one, _ in plan(root, [archive]).todo] == ["set"]
    assert fetch(root, [archive]) == 1
    assert files_in(root) == FILES


def test_another_file_is_refused_by_its_md5(server: Unkind, tmp_path: Path) -> None:
    archive = published(server, "tar")
    server.files["set.tar"] = bytes(len(server.files["set.tar"]))
    with pytest.raises(DataError, match=r"MD5 [0-9a-f]{32}"):
        fetch(tmp_path, [archive])
    assert files_in(tmp_path) == {}


def linked() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo("top/inner/a.png")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(entry)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (packed("tar", {"../evil": b"x"}), "leads out"),
        (packed("tar", {"/evil": b"x"}), "leads out"),
        (linked(), "leads out"),
        (packed("tar", {"other/a.png": b"x"}), "without the files wanted"),
        (b"<html>please log in</html>", "a damaged archive"),
    ],
)
def test_a_bad_tree_leaves_nothing_but_an_error(
    server: Unkind, tmp_path: Path, content: bytes, words: str
) -> None:
    server.files["set.tar"] = content
    archive = dataclasses.replace(published(server, "tar"), md5=None)
    with pytest.raises(DataError, match=words):
        fetch(tmp_path / "root", [archive], pause=0.0)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"lock"}


def test_the_facts_of_the_papers_datasets_are_whole() -> None:
    for name in ("voc", "sbd", "ade20k", "cocostuff10k"):
        for archive in DATASETS[name]:
            assert archive.tree
            assert archive.bytes or archive.about
            assert re.fullmatch("[0-9a-f]{64}", archive.sha256 or "0" * 64)
            assert re.fullmatch("[0-9a-f]{32}", archive.md5 or "0" * 32)
    assert [archive.file for archive in BROUGHT["cityscapes"]] == [
        "gtFine_trainvaltest.zip",
        "leftImg8bit_trainvaltest.zip",
    ]


@pytest.mark.parametrize("name", ["voc", "sbd", "ade20k", "cocostuff10k"])
def test_the_command_says_how_each_is_verified(tmp_path: Path, name: str) -> None:
    result = CliRunner().invoke(app, ["fetch", name, str(tmp_path / "new"), "--dry-run"])
    assert result.exit_code == 0, result.output
    known = {"voc": "size and SHA-256", "sbd": "SHA-256", "ade20k": "MD5"}
    assert known.get(name, "the check sums inside") in result.output


def test_cityscapes_is_not_fetched_but_explained(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["fetch", "cityscapes", str(tmp_path)])
    assert isinstance(result.exception, UsageError)
    assert "cityscapes-dataset.com" in str(result.exception)
    assert "--layout cityscapes" in str(result.exception)
