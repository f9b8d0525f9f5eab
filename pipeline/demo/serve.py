"""Serve the page until Ctrl-C."""

from __future__ import annotations

import errno
import importlib.util
import socket

from pipeline.runtime.errors import KilosegError, UsageError

LIBRARIES = ("starlette", "uvicorn")
_LOCAL = ("127.0.0.1", "localhost", "::1")


def require_libraries() -> None:
    """Check that the extra's libraries are installed, without importing them.

    Raises:
        KilosegError: one is missing.
    """
    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise KilosegError(
            "a library of the page is missing",
            where="pipeline demo",
            found=f"no {' and no '.join(missing)}",
            hint='pip install "kiloseg-pipeline[demo]" (in a checkout: make setup)',
        )


def open_port(host: str, port: int) -> socket.socket:
    """Return a socket that listens, so that a taken port is told before the network is loaded.

    Args:
        host: address of this machine.
        port: 0 for a free one.

    Raises:
        KilosegError: the port is taken, or not ours to take.
        UsageError: not an address of this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        opened = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise _no_address(host, error) from error
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was just given up is free
        opened.bind((host, port))
        opened.listen()
    except OSError as error:
        opened.close()
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise _no_address(host, error) from error
        raise KilosegError(
            "the port is taken" if error.errno == errno.EADDRINUSE else "this port needs more rights",
            where=f"{host}:{port}",
            found=error.strerror,
            hint="name another --port, or 0 for any free one",
        ) from error
    return opened


def address(opened: socket.socket) -> str:
    """Return where the page is."""
    host, port = opened.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def allowed_hosts(host: str) -> list[str] | None:
    """Return the names by which the page may be called; None, any, where other machines may call it."""
    return ["127.0.0.1", "localhost", "[::1]", host] if host in _LOCAL else None


def _no_address(host: str, error: OSError) -> UsageError:
    return UsageError(
        "not an address of this machine",
        where="--host",
        found=f"{host}: {error.strerror}",
        allowed="127.0.0.1, or 0.0.0.0 for all networks",
    )
