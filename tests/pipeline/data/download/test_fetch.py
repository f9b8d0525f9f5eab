"""Fetching, from a real server on 127.0.0.1 that drops, lies, refuses and serves the wrong thing."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import io
import random
import re
import signal
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli.data import app
from pipeline.data.download import fetch as library
from pipeline.data.download.archives import COCO_LVIS, Archive
from pipeline.data.download.fetch import choose, fetch, plan
from pipeline.data.download.http import ATTEMPTS, Wanted, download
from pipeline.runtime.errors import DataError, KilosegError, UsageError
from tests.pipeline.data.download.unkind_server import Unkind, serve

CONTENT = random.Random(1).randbytes(3_000_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


def zipped(files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


IMAGES = {f"val2017/{i:012d}.jpg": random.Random(i).randbytes(1000) for i in range(20)}
IMAGES_ZIP = zipped({"val2017/": b"", **IMAGES})
STUFF_ZIP = zipped(
    {
        "annotations/stuff_train2017.json": b'{"a": 1}',
        "annotations/stuff_val2017.json": b'{"b": 2}',
        "annotations/stuff_val2017_pixelmaps.zip": b"not wanted",
        "__MACOSX/annotations/stuff_val2017.json": b"not wanted",
    }
)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Unkind]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serve({"file.zip": CONTENT, "val2017.zip": IMAGES_ZIP, "stuff.zip": STUFF_ZIP}) as unkind:
        yield unkind


def published(server: Unkind, name: str = "val2017") -> Archive:
    content = server.files[f"{name}.zip"]
    members = ("val2017/",) if name == "val2017" else ("stuff_train2017.json", "stuff_val2017.json")
    target = "val2017" if name == "val2017" else "annotations"
    digest = hashlib.sha256(content).hexdigest()
    return Archive(name, f"{server.url}/{name}.zip", members, target, len(content), digest)


def wanted(server: Unkind, folder: Path, **changes: object) -> Wanted:
    base = Wanted(f"{server.url}/file.zip", folder / "file.zip", len(CONTENT), DIGEST)
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_whole_file_arrives_once(server: Unkind, tmp_path: Path) -> None:
    told: list[int] = []
    download(wanted(server, tmp_path), advance=told.append)
    assert files_in(tmp_path) == {"file.zip": CONTENT}
    assert sum(told) == len(CONTENT)
    download(wanted(server, tmp_path))
    assert len(server.requests) == 1


@pytest.mark.parametrize("known", [True, False])
def test_dropped_connections_are_taken_up_where_they_broke(
    server: Unkind, tmp_path: Path, known: bool
) -> None:
    server.drop_after, server.drops = 700_000, 3
    unknown = {} if known else {"bytes": None, "sha256": None}
    told: list[int] = []
    download(wanted(server, tmp_path, **unknown), advance=told.append, pause=0.001)
    assert files_in(tmp_path) == {"file.zip": CONTENT}
    assert [start for _, _, start in server.requests] == [0, 700_000, 1_400_000, 2_100_000]
    assert sum(told) == len(CONTENT)


def test_a_server_that_refuses_ranges_starts_over_and_ends_well(server: Unkind, tmp_path: Path) -> None:
    server.drop_after, server.drops, server.ranges = 700_000, 2, False
    told: list[int] = []
    download(wanted(server, tmp_path), advance=told.append, pause=0.001)
    assert files_in(tmp_path) == {"file.zip": CONTENT}
    assert sum(told) == len(CONTENT)
    assert [start for _, _, start in server.requests] == [0, 0, 0]


def test_a_file_that_changed_meanwhile_is_not_patched_together(server: Unkind, tmp_path: Path) -> None:
    server.drop_after, server.drops = 700_000, 1

    def then_only_failures(steps: int) -> None:
        server.failures = 100

    with pytest.raises(KilosegError, match="503"):
        download(wanted(server, tmp_path), advance=then_only_failures, pause=0.0)
    assert (tmp_path / "file.zip.part").stat().st_size == 700_000
    server.files["file.zip"], server.etag, server.failures = CONTENT[::-1], '"v2"', 0
    download(wanted(server, tmp_path, sha256=None))
    assert server.requests[-1] == ("/file.zip", "bytes=700000-", 0)
    assert (tmp_path / "file.zip").read_bytes() == CONTENT[::-1]


def test_without_a_version_and_a_digest_nothing_is_taken_up(server: Unkind, tmp_path: Path) -> None:
    server.drop_after, server.drops, server.etag = 700_000, 1, None
    download(wanted(server, tmp_path, sha256=None), pause=0.001)
    assert [start for _, _, start in server.requests] == [0, 0]
    assert files_in(tmp_path) == {"file.zip": CONTENT}


@pytest.mark.parametrize("claim", [-1000, 1000])
def test_a_lie_about_the_published_length_is_refused_before_anything_is_fetched(
    server: Unkind, tmp_path: Path, claim: int
) -> None:
    server.claim = claim
    with pytest.raises(DataError, match=r"3,000,000 bytes") as caught:
        download(wanted(server, tmp_path), pause=0.0)
    assert f"{3_000_000 + claim:,}" in str(caught.value)
    assert not (tmp_path / "file.zip").exists()


def test_a_length_that_promises_too_much_is_found_out_by_asking_for_the_rest(
    server: Unkind, tmp_path: Path
) -> None:
    """Nothing is published here: the server's 416 tells how long the file really is."""
    server.claim = 1000
    download(wanted(server, tmp_path, bytes=None, sha256=None), pause=0.0)
    assert (tmp_path / "file.zip").read_bytes() == CONTENT


def test_a_server_without_lengths_is_served_to_the_end(server: Unkind, tmp_path: Path) -> None:
    server.silent_length = True
    server.drop_after, server.drops = 700_000, 1  # which then looks like an end
    download(wanted(server, tmp_path), pause=0.0)
    assert (tmp_path / "file.zip").read_bytes() == CONTENT


def test_a_wrong_file_of_the_right_length_is_refused_and_removed(server: Unkind, tmp_path: Path) -> None:
    server.files["file.zip"] = CONTENT[::-1]
    with pytest.raises(DataError, match="SHA-256"):
        download(wanted(server, tmp_path))
    assert files_in(tmp_path) == {}


def test_a_part_that_is_not_the_one_asked_for_is_thrown_away(server: Unkind, tmp_path: Path) -> None:
    server.drop_after, server.drops, server.shift = 700_000, 100, 7
    with pytest.raises(KilosegError, match="cannot download"):
        download(wanted(server, tmp_path), pause=0.0)
    server.shift = server.drops = 0
    download(wanted(server, tmp_path))
    assert (tmp_path / "file.zip").read_bytes() == CONTENT


@pytest.mark.parametrize("failures", [1, ATTEMPTS - 1])
def test_failures_that_pass_are_waited_for(server: Unkind, tmp_path: Path, failures: int) -> None:
    server.failures = failures
    download(wanted(server, tmp_path), pause=0.001)
    assert (tmp_path / "file.zip").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ({"failures": ATTEMPTS}, "503"),
        ({"files": {}}, "404"),
        ({"encoding": "gzip"}, "encoded as gzip"),
        ({"drop_after": 0, "drops": 99}, "cannot download"),
    ],
)
def test_what_does_not_pass_is_one_error(
    server: Unkind, tmp_path: Path, spoil: dict[str, object], words: str
) -> None:
    for name, value in spoil.items():
        setattr(server, name, value)
    with pytest.raises(KilosegError, match=words) as caught:
        download(wanted(server, tmp_path), pause=0.0)
    assert caught.value.exit_code == 1
    assert caught.value.hint


def test_a_server_that_is_not_there_is_one_error(tmp_path: Path) -> None:
    with serve({}) as gone:
        url = f"{gone.url}/file.zip"
    with pytest.raises(KilosegError, match="cannot download"):
        download(Wanted(url, tmp_path / "file.zip"), pause=0.0)


def test_an_archive_is_unpacked_noted_and_removed(server: Unkind, tmp_path: Path) -> None:
    root = tmp_path / "root"
    archives = [published(server), published(server, "stuff")]
    assert fetch(root, archives) == 2
    assert files_in(root / "val2017") == {name.partition("/")[2]: text for name, text in IMAGES.items()}
    assert files_in(root / "annotations") == {
        "stuff_train2017.json": b'{"a": 1}',
        "stuff_val2017.json": b'{"b": 2}',
    }
    assert set(files_in(root / "archives")) == {"fetched.json", "lock"}
    before = len(server.requests)
    assert fetch(root, archives) == 0
    assert len(server.requests) == before


def test_what_was_deleted_is_fetched_again_and_nothing_else(server: Unkind, tmp_path: Path) -> None:
    archives = [published(server), published(server, "stuff")]
    fetch(tmp_path, archives)
    whole = files_in(tmp_path)
    (tmp_path / "val2017" / "000000000003.jpg").unlink()
    assert [archive.name for archive, _ in plan(tmp_path, archives).todo] == ["val2017"]
    assert fetch(tmp_path, archives) == 1
    assert files_in(tmp_path) == whole


def test_a_mirror_serves_by_file_name_and_is_verified_alike(server: Unkind, tmp_path: Path) -> None:
    official = dataclasses.replace(published(server), url="http://127.0.0.1:1/zips/val2017.zip")
    assert fetch(tmp_path / "a", [official], mirror=f"{server.url}/", pause=0.0) == 1
    server.files["val2017.zip"] = bytes(len(IMAGES_ZIP))
    with pytest.raises(DataError, match="not the one published"):
        fetch(tmp_path / "b", [official], mirror=server.url)


def spoilt_zips() -> dict[str, tuple[bytes, str]]:
    flipped = bytearray(zipped(IMAGES, zipfile.ZIP_STORED))
    flipped[500] ^= 1
    link = io.BytesIO()
    with zipfile.ZipFile(link, "w") as archive:
        entry = zipfile.ZipInfo("val2017/a.jpg")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(entry, "/etc/passwd")
    return {
        "cut": (IMAGES_ZIP[: len(IMAGES_ZIP) // 2], "damaged archive"),
        "flipped bit": (bytes(flipped), "damaged archive"),
        "a page of HTML": (b"<html>please log in</html>", "damaged archive"),
        "empty": (b"", "damaged archive"),
        "dots": (zipped({"val2017/../../../evil.jpg": b"x"}), "leads out"),
        "absolute": (zipped({"/val2017/evil.jpg": b"x"}), "leads out"),
        "backslashes": (zipped({"val2017\\..\\..\\evil.jpg": b"x"}), "leads out"),
        "drive": (zipped({"C:/val2017/evil.jpg": b"x"}), "leads out"),
        "link": (link.getvalue(), "leads out"),
        "other content": (zipped({"train2014/a.jpg": b"x"}), "without the files"),
    }


@pytest.mark.parametrize("name", spoilt_zips())
def test_a_bad_archive_leaves_nothing_but_an_error(server: Unkind, tmp_path: Path, name: str) -> None:
    content, words = spoilt_zips()[name]
    archive = dataclasses.replace(published(server), bytes=None, sha256=None)
    server.files["val2017.zip"] = content
    root = tmp_path / "root"
    with pytest.raises(DataError, match=words):
        fetch(root, [archive], pause=0.0)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"lock"}
    server.files["val2017.zip"] = IMAGES_ZIP
    assert fetch(root, [archive]) == 1


def test_a_disk_too_small_is_refused_before_the_first_request(
    server: Unkind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 10_000})
    monkeypatch.setattr(library.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(KilosegError, match="too small"):
        fetch(tmp_path, [published(server)])
    assert server.requests == []


def test_a_disk_too_small_for_what_is_inside_keeps_the_archive(
    server: Unkind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": library.SPARE + 2 * len(IMAGES_ZIP) + 10_000})
    server.files["val2017.zip"] = zipped({f"val2017/{i}.jpg": bytes(1_000_000) for i in range(5)})
    archive = published(server)
    with monkeypatch.context() as patched:
        patched.setattr(library.shutil, "disk_usage", lambda path: usage)
        with pytest.raises(KilosegError, match="too small"):
            fetch(tmp_path, [archive])
    assert (tmp_path / "archives" / "val2017.zip").is_file()
    assert fetch(tmp_path, [archive]) == 1
    assert len(server.requests) == 1


@pytest.mark.process
def test_a_disk_that_fills_up_leaves_a_part_to_go_on_from(server: Unkind, tmp_path: Path) -> None:
    """The process may write files of 1 MiB at most: the write fails as on a full disk."""
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from pipeline.runtime.signals import run_command\n"
        "from pipeline.data.download.http import Wanted, download\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))\n"
        "import errno, os\n"
        f"wanted = Wanted({server.url + '/file.zip'!r}, Path({str(tmp_path / 'file.zip')!r}))\n"
        "def work():\n"
        "    try: download(wanted)\n"
        "    except OSError as e:\n"
        "        raise OSError(errno.ENOSPC if e.errno == errno.EFBIG else e.errno, '') from e\n"
        "sys.exit(run_command(work))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "the disk is full" in done.stderr
    assert (tmp_path / "file.zip.part").stat().st_size == 2**20
    download(wanted(server, tmp_path))
    assert server.requests[-1][2] == 2**20
    assert (tmp_path / "file.zip").read_bytes() == CONTENT


@pytest.mark.process
def test_a_kill_mid_file_loses_nothing_that_had_arrived(server: Unkind, tmp_path: Path) -> None:
    server.chunk_pause = 0.02
    code = (
        "import sys; from pathlib import Path; from pipeline.data.download.http import Wanted, download\n"
        f"download(Wanted(sys.argv[1], Path(sys.argv[2]), {len(CONTENT)}, {DIGEST!r}))"
    )
    path = tmp_path / "file.zip"
    command = [sys.executable, "-c", code, f"{server.url}/file.zip", str(path)]
    part, kills = tmp_path / "file.zip.part", 0
    for least in (1, 1_200_000):
        process = subprocess.Popen(command)
        while process.poll() is None and (not part.exists() or part.stat().st_size < least):
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills == 2
    arrived = part.stat().st_size
    assert not path.exists()
    server.chunk_pause = 0.0
    download(wanted(server, tmp_path))
    assert files_in(tmp_path) == {"file.zip": CONTENT}
    assert server.requests[-1][2] == arrived >= 1_200_000


def test_a_kill_while_unpacking_or_moving_is_made_good(
    server: Unkind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = published(server)
    fetch(tmp_path / "undisturbed", [archive])
    move, calls = Path.replace, iter(range(100))

    def killed_at_the_eighth(path: Path, target: Path) -> Path:
        if next(calls) == 7:
            raise KeyboardInterrupt
        return move(path, target)

    def killed() -> None:
        raise KeyboardInterrupt

    for owner, name, spoilt in ((Path, "replace", killed_at_the_eighth), (library.os, "sync", killed)):
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, spoilt)
            with pytest.raises(KeyboardInterrupt):
                fetch(tmp_path / name, [archive])
        assert (tmp_path / name / "archives" / "val2017.zip").is_file()
        assert fetch(tmp_path / name, [archive]) == 1
        assert files_in(tmp_path / name) == files_in(tmp_path / "undisturbed")


@pytest.mark.process
def test_two_at_once_refuse_each_other_and_a_dead_one_holds_nothing(server: Unkind, tmp_path: Path) -> None:
    (tmp_path / "archives").mkdir()
    with (tmp_path / "archives" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="another run"):
            fetch(tmp_path, [published(server)])
    assert fetch(tmp_path, [published(server)]) == 1


def test_a_damaged_note_only_means_fetching_again(server: Unkind, tmp_path: Path) -> None:
    fetch(tmp_path, [published(server)])
    for text in ("{", "[]", '{"val2017": 3}', '{"val2017": {"files": "x"}}'):
        (tmp_path / "archives" / "fetched.json").write_text(text)
        assert fetch(tmp_path, [published(server)]) == 1


def test_the_published_facts_are_whole() -> None:
    assert len({archive.name for archive in COCO_LVIS}) == 5
    for archive in COCO_LVIS:
        assert archive.bytes is not None
        assert archive.sha256 is None or re.fullmatch("[0-9a-f]{64}", archive.sha256)
        assert archive.file.endswith(".zip")


def test_the_command_says_what_it_would_do_and_writes_nothing(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["fetch", "coco_lvis", str(tmp_path / "new"), "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "train2017.zip" in result.output
    assert "space needed: about" in result.output
    assert not (tmp_path / "new").exists()
    some = CliRunner().invoke(
        app, ["fetch", "coco_lvis", str(tmp_path), "--dry-run", "--only", "lvis_val", "--only", "stuff"]
    )
    assert "train2017" not in some.output


@pytest.mark.parametrize("arguments", [["imagenet"], ["coco_lvis", "--only", "pictures"]])
def test_an_unknown_name_is_refused_with_those_there_are(tmp_path: Path, arguments: list[str]) -> None:
    result = CliRunner().invoke(app, ["fetch", arguments[0], str(tmp_path), *arguments[1:], "--dry-run"])
    assert isinstance(result.exception, UsageError)
    assert result.exception.allowed
    assert [archive.name for archive in choose(COCO_LVIS, None)] == [a.name for a in COCO_LVIS]


def test_a_dry_run_counts_what_has_arrived(server: Unkind, tmp_path: Path) -> None:
    archive = published(server)
    (tmp_path / "archives").mkdir()
    (tmp_path / "archives" / "val2017.zip.part").write_bytes(IMAGES_ZIP[:9000])
    work = plan(tmp_path, [archive])
    assert work.todo == [(archive, 9000)]
    assert work.needed == 2 * len(IMAGES_ZIP) - 9000 + library.SPARE
    assert [p.name for p in (tmp_path / "archives").iterdir()] == ["val2017.zip.part"]
