"""Download one file by HTTP: whole or not at all under its name, resumed where an earlier try broke off.

What has arrived lies in `NAME.part`. `NAME.part.json` records the version of the file, so that the server is
asked for the rest of that version only (Range with If-Range). `requests` handles connections, redirects,
proxies and certificates.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import requests
from urllib3.exceptions import HTTPError

from pipeline.runtime.errors import DataError, KilosegError
from pipeline.runtime.files import file_digest, write_json

CHUNK = 2**20
ATTEMPTS = 6
"""Consecutive tries without a new byte before giving up."""
TIMEOUT = (20.0, 60.0)
"""Seconds to connect, and between two reads."""
LATER = {408, 425, 429, 500, 502, 503, 504}
"""Statuses worth another try."""


@dataclass(frozen=True)
class Wanted:
    """A file to download.

    Args:
        url: http or https.
        path: where to put it.
        bytes: its size where known beforehand; a server that announces another is refused at once.
        sha256: its digest where known.
    """

    url: str
    path: Path
    bytes: int | None = None
    sha256: str | None = None

    @property
    def part(self) -> Path:
        """The file with what has arrived so far."""
        return self.path.with_name(f"{self.path.name}.part")

    @property
    def memory(self) -> Path:
        """The file that says which version the part belongs to."""
        return self.path.with_name(f"{self.path.name}.part.json")

    @property
    def arrived(self) -> int:
        """The bytes that are already here."""
        for path in (self.path, self.part):
            with contextlib.suppress(FileNotFoundError):
                return path.stat().st_size
        return 0


class _TryAgain(Exception):
    """Something that may go away by itself."""


def download(
    wanted: Wanted, *, advance: Callable[[int], None] = lambda steps: None, pause: float = 1.0
) -> None:
    """Download one file; one that already lies there is only verified.

    Args:
        wanted: what and where to.
        advance: told the bytes as they come; negative when a part has to be thrown away.
        pause: seconds before the second try; doubled with each that brings nothing.

    Raises:
        KilosegError: the server cannot be reached or does not answer well.
        DataError: it serves another file than the one wanted.
        OSError: the disk; what has arrived stays, and the next call goes on from there.
    """
    wanted.path.parent.mkdir(parents=True, exist_ok=True)
    failures, most, done = 0, wanted.arrived, wanted.path.is_file()
    with requests.Session() as session:
        while not done:
            try:
                done = _fetch_rest(session, wanted, advance)
            except (_TryAgain, requests.ConnectionError, requests.Timeout) as error:
                # what counts is ground never reached before: starting over again and again is no progress
                failures = 1 if wanted.arrived > most else failures + 1
                most = max(most, wanted.arrived)
                if failures >= ATTEMPTS:
                    raise _gave_up(wanted, error) from error
                time.sleep(pause * 2 ** (failures - 1))
            except requests.RequestException as error:
                raise _gave_up(wanted, error) from error
    _verify(wanted)
    if not wanted.path.is_file():
        wanted.part.replace(wanted.path)
    wanted.memory.unlink(missing_ok=True)


def _fetch_rest(session: requests.Session, wanted: Wanted, advance: Callable[[int], None]) -> bool:
    """Request what is still missing; return whether all is here now."""
    have = wanted.arrived
    if wanted.bytes is not None and have == wanted.bytes:
        return True
    headers = {"Accept-Encoding": "identity"}
    known = _remembered(wanted)
    if have and (known or wanted.sha256) and have < (wanted.bytes or have + 1):
        headers["Range"] = f"bytes={have}-"
        if known:
            headers["If-Range"] = known
    elif have:  # too long, or of a version that cannot be told: start over
        _discard(wanted, advance)
        have = 0
    with session.get(wanted.url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        total, have = _check_answer(response, wanted, have, advance)
        with wanted.part.open("ab", buffering=0) as part:
            try:
                # as it comes: a larger read would lose what had arrived when the connection breaks
                while chunk := response.raw.read1(CHUNK, decode_content=False):
                    rest = memoryview(chunk)
                    while rest:  # a disk that is nearly full takes a part
                        rest = rest[part.write(rest) :]
                    advance(len(chunk))
            except HTTPError as error:
                raise _TryAgain(f"the connection broke: {error}") from error
            os.fsync(part.fileno())
    total = wanted.bytes if total is None else total
    if total is not None and wanted.part.stat().st_size < total:
        raise _TryAgain(f"the connection ended after {wanted.part.stat().st_size:,} of {total:,} bytes")
    return True


def _check_answer(
    response: requests.Response, wanted: Wanted, have: int, advance: Callable[[int], None]
) -> tuple[int | None, int]:
    """Return the size of the whole file, if announced, and how many of the bytes here are kept."""
    status = response.status_code
    if status == 416 and have:
        complete = response.headers.get("Content-Range", "").rpartition("/")[2] == str(have)
        if complete and wanted.bytes is None:
            return have, have
        _discard(wanted, advance)
        raise _TryAgain("the server knows no such part of the file (416)")
    if status in LATER:
        raise _TryAgain(f"{status} {response.reason}")
    if status not in (200, 206) or response.headers.get("Content-Encoding", "identity") != "identity":
        encoding = response.headers.get("Content-Encoding")
        raise _gave_up(
            wanted, f"{status} {response.reason}" + (f", encoded as {encoding}" if encoding else "")
        )
    if status == 206:
        part = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", ""))
        if part is None or int(part[1]) != have:
            _discard(wanted, advance)
            raise _TryAgain(f"not the part asked for: {response.headers.get('Content-Range')}")
        total = None if part[3] == "*" else int(part[3])
    else:
        if have:  # the server ignores ranges, or the file is another one now
            _discard(wanted, advance)
            have = 0
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdigit() else None
        _remember(response, wanted)
    if None not in (total, wanted.bytes) and total != wanted.bytes:
        _discard(wanted, advance)
        raise DataError(
            "the server has another file than the one wanted",
            where=wanted.url,
            found=f"{total:,} bytes",
            allowed=f"{wanted.bytes:,} bytes",
            hint="try another source: --mirror URL",
        )
    return total, have


def _remember(response: requests.Response, wanted: Wanted) -> None:
    """Record the version of the file; weak tags promise nothing about bytes and are ignored."""
    tag = response.headers.get("ETag", "")
    version = tag if tag.startswith('"') else response.headers.get("Last-Modified", "")
    write_json(wanted.memory, {"url": wanted.url, "version": version})


def _remembered(wanted: Wanted) -> str:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        memory = json.loads(wanted.memory.read_text(encoding="utf-8"))
        if memory.get("url") == wanted.url:
            return str(memory.get("version", ""))
    return ""


def _discard(wanted: Wanted, advance: Callable[[int], None]) -> None:
    advance(-wanted.arrived)
    wanted.part.unlink(missing_ok=True)


def _verify(wanted: Wanted) -> None:
    """Raise, and remove the file, unless it is of the wanted size and digest."""
    path = wanted.path if wanted.path.is_file() else wanted.part
    size = path.stat().st_size
    digest = None
    if wanted.sha256 is not None and size == (wanted.bytes or size):
        digest = file_digest(path)
    if size == (wanted.bytes or size) and digest == wanted.sha256:
        return
    path.unlink()
    wanted.memory.unlink(missing_ok=True)
    raise DataError(
        "the downloaded file is not the one published",
        where=wanted.url,
        found=f"{size:,} bytes" if digest is None else f"SHA-256 {digest}",
        allowed=f"{wanted.bytes or size:,} bytes" + (f", SHA-256 {wanted.sha256}" if wanted.sha256 else ""),
        hint="it was removed; run the command again, or with another source: --mirror URL",
    )


def _gave_up(wanted: Wanted, found: object) -> KilosegError:
    return KilosegError(
        "cannot download",
        where=wanted.url,
        found=f"{found}; {wanted.arrived:,} bytes are here",
        hint="check the network and the address; the same command goes on from there",
    )
