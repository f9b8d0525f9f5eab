"""An HTTP server on 127.0.0.1 that serves bytes from memory and misbehaves as told."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Unkind:
    """What the server does; counts are of answers still to be spoilt.

    Args:
        files: path -> content.
        drop_after: bytes after which each connection is cut; None never.
        drops: how many answers are cut.
        claim: added to the announced length of whole files.
        ranges: whether ranges are answered.
        etag: of all files; None for none, and no date either.
        failures: how many answers are 503.
        encoding: announced as Content-Encoding.
        shift: added to the start of each range that is served.
        chunk_pause: seconds between 64 kB pieces.
    """

    files: dict[str, bytes]
    drop_after: int | None = None
    drops: int = 0
    claim: int = 0
    ranges: bool = True
    etag: str | None = '"v1"'
    failures: int = 0
    encoding: str | None = None
    shift: int = 0
    chunk_pause: float = 0.0
    silent_length: bool = False
    requests: list[tuple[str, str | None, int]] = field(default_factory=list)
    url: str = ""


def _handler(unkind: Unkind) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = unkind.files.get(self.path.lstrip("/"))
            wanted = self.headers.get("Range")
            if unkind.failures:
                unkind.failures -= 1
                self._answer(503, b"later")
            elif body is None:
                self._answer(404, b"no such file")
            else:
                self._serve(body, wanted)

        def _serve(self, body: bytes, wanted: str | None) -> None:
            condition = self.headers.get("If-Range")
            match = re.fullmatch(r"bytes=(\d+)-", wanted or "")
            start = 0
            if match and unkind.ranges and condition in (None, unkind.etag):
                start = int(match[1])
                if start >= len(body):
                    self._answer(416, b"", {"Content-Range": f"bytes */{len(body)}"})
                    return
                start += unkind.shift
                last = len(body) - 1
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{last}/{len(body)}")
            else:
                self.send_response(200)
            unkind.requests.append((self.path, wanted, start))
            rest = body[start:]
            if not unkind.silent_length:
                self.send_header("Content-Length", str(len(rest) + (unkind.claim if not start else 0)))
            for name, value in (("ETag", unkind.etag), ("Content-Encoding", unkind.encoding)):
                if value:
                    self.send_header(name, value)
            self.send_header("Connection", "close")
            self.end_headers()
            self.close_connection = True
            if unkind.drop_after is not None and unkind.drops:
                unkind.drops -= 1
                rest = rest[: unkind.drop_after]
            with contextlib.suppress(OSError):
                for at in range(0, len(rest), 65_536):
                    self.wfile.write(rest[at : at + 65_536])
                    time.sleep(unkind.chunk_pause)

        def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            unkind.requests.append((self.path, self.headers.get("Range"), -status))
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            """Says nothing."""

    return Handler


@contextlib.contextmanager
def serve(files: dict[str, bytes]) -> Iterator[Unkind]:
    unkind = Unkind(files)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(unkind))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    unkind.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield unkind
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
