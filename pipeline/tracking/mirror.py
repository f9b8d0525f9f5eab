"""Send what waits in files to MLflow by a thread, so that no work ever waits for a store or ends by it."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

from pipeline.runtime.errors import KilosegError
from pipeline.runtime.secrets import hide_secrets

_LONGEST_PAUSE = 30.0
_CLOSING_PAUSE = 2.0
SLOW_SECONDS = 30.0
"""What a call to a store that answers slowly may take at the end."""


class Mirror:
    """Call `send` again and again until closed; when it fails, say so once and try again later.

    Args:
        send: sends what is new. It may raise anything; what it sent before it must not send twice.
        what: goes on meanwhile, for the message.
        interval: seconds between two calls; after a failure twice as long each time, up to half a minute.
        explain: returns the message of a failure.
    """

    def __init__(
        self,
        send: Callable[[], None],
        *,
        what: str,
        explain: Callable[[BaseException], KilosegError],
        interval: float = 2.0,
    ) -> None:
        self.send, self.what, self.interval, self._explain = send, what, interval, explain
        self.complete = False
        self.failure: KilosegError | None = None
        """why the last call failed; None if it did not"""
        self._closing = threading.Event()
        self._finish: Callable[[], None] = lambda: None
        self._until = 0.0
        self._thread = threading.Thread(target=self._run, name="mlflow mirror", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(
        self, finish: Callable[[], None] = lambda: None, *, patience: float, slow: float = SLOW_SECONDS
    ) -> bool:
        """Send what is left, then call `finish`, in the thread; wait for it.

        Args:
            finish: what is to be done when everything was sent; tried again like `send`.
            patience: seconds to wait for a store that is away.
            slow: seconds to wait beyond them for calls that have begun.

        Returns:
            Whether everything was sent.
        """
        self._finish, self._until = finish, time.monotonic() + patience
        self._closing.set()
        if self._thread.ident is None:
            self._thread.start()
        self._thread.join(patience + slow)
        return self.complete

    def _run(self) -> None:
        pause = self.interval
        while True:
            closing = self._closing.wait(pause)
            try:
                self.send()
                if closing:
                    self._finish()
            except Exception as error:
                self._note(error)
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                self._note(None)
                pause = self.interval
                if closing:
                    self.complete = True
                    return
            if closing:
                left = self._until - time.monotonic()
                if left <= 0:
                    return
                time.sleep(min(pause, _CLOSING_PAUSE, left))

    def _note(self, error: Exception | None) -> None:
        if error is None and self.failure is not None:
            print("the MLflow store answers again", file=sys.stderr, flush=True)
        failure = None if error is None else self._explain(error)
        if failure is not None and self.failure is None:
            reason = "" if failure.found is None else f" ({failure.found})"
            print(
                hide_secrets(
                    f"warning: {failure.what}: {failure.where}{reason}; {self.what} goes on, and its numbers "
                    "wait in files until they can be sent"
                ),
                file=sys.stderr,
                flush=True,
            )
        self.failure = failure
