"""The page's server: four files and one question, for this machine alone."""

from __future__ import annotations

import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from pipeline.demo.exchange import answer, class_list
from pipeline.inference.predictor import Predictor
from pipeline.runtime.errors import KilosegError, UsageError

LARGEST_REQUEST = 2**29
"""Bytes of a picture file and its request."""
BODY = "application/octet-stream"
_HERE = Path(__file__).parent
_FILES = {"/": "page.html", "/page.css": "page.css", "/page.js": "page.js", "/picture.js": "picture.js"}
_HEADERS = {
    # nothing is fetched from elsewhere, whatever a class or a file is called
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def make_app(predictor: Predictor, hosts: list[str] | None = None) -> Starlette:
    """Return the application.

    Requests of other websites do not get through: their browsers name another host, or ask before sending
    this type of body and get no leave.

    Args:
        predictor: answers one request at a time.
        hosts: names by which the page may be called; None for any.
    """
    lock = threading.Lock()  # of one picture's memory, and of the predictor

    def predicted(body: bytes) -> bytes:
        with lock:
            return answer(predictor, body)

    async def predict(request: Request) -> Response:
        if request.headers.get("content-type") != BODY:
            return JSONResponse({"error": f"the type of a request must be {BODY}"}, 415)
        try:
            found = await run_in_threadpool(predicted, await _body(request))
        except KilosegError as error:
            return JSONResponse({"error": str(error)}, 422)
        except Exception as error:
            print(f"error: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            raise
        return Response(found, media_type=BODY)

    async def classes(request: Request) -> Response:
        return JSONResponse(class_list(predictor))

    return Starlette(
        routes=[
            *(Route(path, _file(name)) for path, name in _FILES.items()),
            Route("/classes", classes),
            Route("/predict", predict, methods=["POST"]),
        ],
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=hosts or ["*"], www_redirect=False),
        ],
    )


def _file(name: str) -> Callable[[Request], Awaitable[Response]]:
    async def send(request: Request) -> Response:
        return FileResponse(_HERE / name, headers=_HEADERS)

    return send


async def _body(request: Request) -> bytes:
    """Read a request's body, up to the largest that is taken."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > LARGEST_REQUEST:
            raise UsageError(
                "a file that is too large for this page",
                allowed=f"{LARGEST_REQUEST // 2**20} MiB",
                hint="pipeline predict takes it",
            )
        parts.append(part)
    return b"".join(parts)
