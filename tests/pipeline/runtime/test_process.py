"""A command's process ends with its exit code, and with all that Python does at an end but the freeing."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pipeline.runtime.process import is_watched, run_process
from tests.paths import ROOT

PROGRAM = """
import atexit, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from pipeline.runtime.process import run_process

class Freed:
    def __del__(self):
        print("freed")

kept = Freed()
pool = ThreadPoolExecutor(1)

def work():
    atexit.register(print, "atexit")
    threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
    pool.submit(lambda: (time.sleep(0.1), print("pool")))
    print("command", end=" ")
    END

run_process(work)
"""


@pytest.mark.process
@pytest.mark.parametrize(
    ("end", "code", "told"),
    [
        ("pass", 0, ""),
        ("sys.exit(3)", 3, ""),
        ("sys.exit('a word')", 1, "a word"),
        ("raise FileNotFoundError(2, 'No such file', 'x')", 1, "x"),
        ("raise RuntimeError('a defect')", 1, "Traceback"),
        ("raise KeyboardInterrupt", 130, "interrupted"),
    ],
)
def test_the_process_ends_with_the_code_after_threads_and_atexit(end: str, code: int, told: str) -> None:
    command = [sys.executable, "-c", PROGRAM.replace("END", end)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == code
    assert told in ended.stderr
    printed = ended.stdout.split()
    assert printed[:4] == ["command", "pool", "thread", "atexit"]
    normal = end.startswith(("sys.exit('", "raise RuntimeError"))
    assert printed[4:] == (["freed"] if normal else [])


@pytest.mark.parametrize("watch", [sys.settrace, sys.setprofile])
def test_a_debugger_and_a_profiler_see_the_end(watch: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.runtime.process.is_watched", is_watched)
    monkeypatch.setattr(os, "_exit", lambda code: pytest.fail("they would not see it"))
    before = sys.gettrace() if watch is sys.settrace else sys.getprofile()
    watch(lambda *_: None)  # type: ignore[operator]
    try:
        with pytest.raises(SystemExit) as ended:
            run_process(lambda: None)
    finally:
        watch(before)  # type: ignore[operator]
    assert ended.value.code == 0
