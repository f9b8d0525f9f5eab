"""Define the errors of the user's input or machine: one clear message and an exit code each.

Every such error says what is wrong, where, what was found, what would be allowed and the fix. The
command line and the stages print it without a traceback; library users catch the class they care about.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.runtime.secrets import hide_secrets


class KilosegError(Exception):
    """Report a foreseen failure in one message. Exit code 1 unless a subclass says otherwise.

    Passwords in addresses and other secrets are left out of every part.

    Args:
        what: one short clause naming what is wrong.
        where: the file, key, image or option concerned.
        found: the value or state met.
        allowed: the values or state that would be right.
        hint: what the user can do about it.
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        where: str | Path | None = None,
        found: object = None,
        allowed: object = None,
        hint: str | None = None,
    ) -> None:
        self.what = hide_secrets(what)
        self.where = None if where is None else hide_secrets(str(where))
        self.found = None if found is None else hide_secrets(str(found))
        self.allowed = None if allowed is None else hide_secrets(str(allowed))
        self.hint = None if hint is None else hide_secrets(hint)
        super().__init__(self.message())

    def message(self) -> str:
        """Return the whole error as indented lines, the empty parts left out."""
        parts = (
            ("where", self.where),
            ("found", self.found),
            ("allowed", self.allowed),
            ("fix", self.hint),
        )
        return "\n".join(
            [self.what, *(f"  {name + ':':9}{text}" for name, text in parts if text is not None)]
        )

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle whole, so that a loader's worker process can hand the error to its parent."""
        return (_rebuild, (type(self), self.what, self.where, self.found, self.allowed, self.hint))


def _rebuild(
    kind: type[KilosegError], what: str, where: str, found: str, allowed: str, hint: str
) -> KilosegError:
    return kind(what, where=where, found=found, allowed=allowed, hint=hint)


class UsageError(KilosegError):
    """Report a wrong option, setting or combination of them: exit code 2."""

    exit_code = 2


class DataError(KilosegError):
    """Report data that is missing, damaged or not what it claims to be: exit code 3."""

    exit_code = 3


class MemoryLimitError(KilosegError):
    """Report work that does not fit into the device's memory: exit code 4."""

    exit_code = 4


INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it (128 + SIGINT)."""
