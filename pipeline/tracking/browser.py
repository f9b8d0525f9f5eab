"""Open a page of this machine in the browser as soon as its server answers.

Usage: python -m pipeline.tracking.browser ADDRESS
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import webbrowser
from urllib.parse import urlsplit

_MOST_SECONDS = 60.0


def open_when_answered(address: str) -> None:
    """Start a process that waits for the server of `address`, which names a port, and opens the page.

    A process, since `pipeline ui` becomes the server itself.
    """
    command = [sys.executable, "-m", __name__, address]
    subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_and_open(address: str, seconds: float = _MOST_SECONDS) -> bool:
    """Open the page once its port takes connections; return whether one did within so many seconds."""
    place, end = urlsplit(address), time.monotonic() + seconds
    host = "127.0.0.1" if place.hostname in (None, "0.0.0.0", "::") else place.hostname
    while time.monotonic() < end:
        try:
            socket.create_connection((host, place.port), timeout=1).close()
        except OSError:
            time.sleep(0.2)
            continue
        return webbrowser.open(address)
    return False


if __name__ == "__main__":
    wait_and_open(sys.argv[1])
