"""The `pipeline` command in the process of the tests: the same main(), without the seconds of its imports."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from unittest import mock

import pytest

from pipeline.cli.main import main


def pipeline_here(*arguments: str, environment: Mapping[str, str] | None = None) -> int:
    """`pipeline ...` in this process and folder; returns the exit code.

    What the command would end with a traceback is raised here. `environment` replaces this process's.
    """
    before = signal.getsignal(signal.SIGTERM)
    try:
        with (
            mock.patch.object(sys, "argv", ["pipeline", *arguments]),
            mock.patch.dict(os.environ, os.environ if environment is None else environment, clear=True),
            pytest.raises(SystemExit) as ended,
        ):
            main()
    finally:
        signal.signal(signal.SIGTERM, before)  # the command sets its own
    return int(ended.value.code or 0)
