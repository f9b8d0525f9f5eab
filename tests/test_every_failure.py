"""Commands under conditions: whatever goes wrong is an exit code of the table and one message, no traceback.

The conditions are drawn: a call of the system that fails, a value that is odd, a file that is not what it
should be. What starts other processes or trains is left out; the same `run_command` ends it.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import itertools
import os
import runpy
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.config.schema import SECTIONS, Settings
from tests.command import pipeline_here
from tests.conftest import PARAMS
from tests.pipeline.data.layouts.small_layouts import Coco
from tests.pipeline.inference.checkpoints import saved

pytestmark = pytest.mark.slow

CODES = {0, 1, 2, 3, 4, 130}
COMMANDS = [
    "doctor",
    "ui",
    "init --dataset voc --to new.yaml",
    "data bootstrap dataset out --layout coco",
    "data check dataset --layout coco",
    "data masks data/bootstrapped masks",
    "data show data/bootstrapped 1 --save 1.png",
    "data fetch voc fetched --dry-run",
    "classes list --checkpoint checkpoints/exact",
    "classes rename 1 other --checkpoint checkpoints/exact --out changed.safetensors",
    "predict picture.png --out predicted --checkpoint checkpoints/exact/best.safetensors --device cpu",
    "tune best",
    "tune apply",
    "evaluate exact",
    "show exact 1 --save shown.png",
    "stages.bootstrap",
    "stages.report",
]
ERRORS = [
    errno.EACCES,
    errno.EROFS,
    errno.ENOSPC,
    errno.EIO,
    errno.EMFILE,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.EISDIR,
    errno.ESTALE,
]
KEYS = [
    f"{section}.{key}"
    for section in SECTIONS
    if section not in ("variants", "tune")
    for key in Settings.model_fields[section].annotation.model_fields  # type: ignore[union-attr]
]
VALUES: list[object] = [
    *(None, True, -1, 0, 1, 2**31, 2**63, 2**70, -(2**70), 1.5, 1e-320, 1e308, float("inf"), float("nan")),
    *("", "1e-3", "~", "a\0b", "\ud800", "../..", "/dev/null", "é" * 200, "%s{}${x}", "http://u:p@h", "-1"),
    *([], {}, [1, "a"], {"a": {"b": 1}}, [[]], "2024-01-01"),
]
FILES = ["params.yaml", "data/bootstrapped/manifest.json", "data/bootstrapped/label_space.json"]
FILES += ["dataset/annotations/instances_train2017.json", "checkpoints/exact/best.safetensors", "picture.png"]
FILES += ["mlflow.db", "results", "data/bootstrapped", "dataset", "dataset/train2017", "checkpoints/exact"]
FORMS: dict[str, Callable[[Path], object]] = {
    "gone": lambda path: None,
    "a folder": Path.mkdir,
    "empty": Path.touch,
    "noise": lambda path: path.write_bytes(bytes(range(256)) * 9),
    "a number": lambda path: path.write_text("7"),
    "a list": lambda path: path.write_text("[{}]"),
    "an object": lambda path: path.write_text('{"format": 1}'),
    "a circle of links": lambda path: path.symlink_to(path),
    "a link to nowhere": lambda path: path.symlink_to("/nowhere/at/all"),
}
drawn = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of six pictures with everything that a command could look for, the training aside."""
    folder = tmp_path_factory.mktemp("template") / "project"
    Coco(folder / "dataset").write()
    params = {**PARAMS, "data": {"root": "dataset", "layout": "coco", "annotations": "annotations"}}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    with contextlib.chdir(folder):
        assert pipeline_here("data", "bootstrap", "dataset", "data/bootstrapped", "--layout", "coco") == 0
    (folder / "checkpoints" / "exact").mkdir(parents=True)
    saved(folder / "checkpoints" / "exact")
    Image.new("RGB", (40, 30), (9, 99, 199)).save(folder / "picture.png")
    return folder


@contextlib.contextmanager
def copied(template: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "project"
        shutil.copytree(template, folder)
        with contextlib.chdir(folder):
            yield folder


def ended(command: str) -> tuple[int, str]:
    """Exit code and stderr of a command or stage; what escapes `run_command` is a traceback."""
    words, said = command.split(), io.StringIO()
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    with (
        contextlib.redirect_stderr(said),
        contextlib.redirect_stdout(io.StringIO()),
        mock.patch("os.execve", return_value=None),  # `ui` would become MLflow's server
        mock.patch.dict(os.environ, environment, clear=True),
    ):
        try:
            if not words[0].startswith("stages."):
                return pipeline_here(*words), said.getvalue()
            with mock.patch.object(sys, "argv", words):
                runpy.run_module(words[0], run_name="__main__", alter_sys=False)
        except SystemExit as exit_:
            return int(exit_.code or 0), said.getvalue()  # type: ignore[arg-type]
        except BaseException:
            traceback.print_exc(file=said)
    return -1, said.getvalue()


def check(command: str) -> tuple[int, str]:
    code, said = ended(command)
    assert "Traceback" not in said, f"{command}\n{said}"
    assert code in CODES, f"{command}: {code}\n{said}"
    if code and not command.startswith("doctor"):
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 or (code == 3 and command.startswith("data check")), f"{command}\n{said}"
    return code, said


@contextlib.contextmanager
def refusing(folder: Path, number: int, after: int) -> Iterator[list[str]]:
    """Let the calls of the system about files in `folder` fail from the one numbered `after` on."""
    count, met = itertools.count(), []

    def about(path: Any) -> bool:
        return isinstance(path, str | os.PathLike) and str(folder) in os.path.abspath(path)  # noqa: PTH100

    def wrapped(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def failing(path: Any = ".", *arguments: Any, **options: Any) -> Any:
            if about(path) and next(count) >= after:
                met.append(name)
                raise OSError(number, os.strerror(number), os.fspath(path))
            return call(path, *arguments, **options)

        return failing

    with contextlib.ExitStack() as stack:
        for place, name in ((builtins, "open"), (io, "open"), *((os, name) for name in SYSTEM_CALLS)):
            stack.enter_context(mock.patch.object(place, name, wrapped(name, getattr(place, name))))
        yield met


SYSTEM_CALLS = ("open", "mkdir", "replace", "rename", "listdir", "scandir", "unlink", "rmdir")


def test_the_commands_work_where_nothing_is_wrong(template: Path) -> None:
    """Or the properties below would show nothing."""
    with copied(template):
        works = {command for command in COMMANDS if check(command)[0] == 0}
    assert works >= set(COMMANDS[2:11]) | {"stages.bootstrap"}


@drawn
@given(command=st.sampled_from(COMMANDS), number=st.sampled_from(ERRORS), after=st.integers(0, 40))
@example("data bootstrap dataset out --layout coco", errno.EROFS, 5)
@example("data check dataset --layout coco", errno.EACCES, 8)
@example("data show data/bootstrapped 1 --save 1.png", errno.EACCES, 4)
def test_whatever_the_system_refuses_is_one_message(
    template: Path, command: str, number: int, after: int
) -> None:
    with copied(template) as folder, refusing(folder, number, after):
        check(command)


@drawn
@given(command=st.sampled_from(COMMANDS), key=st.sampled_from(KEYS), value=st.sampled_from(VALUES))
@example("stages.bootstrap", "data.root", "a\0b")
@example("doctor", "data.annotations", "\ud800")
@example("doctor", "train.crop_size", 8192)
def test_whatever_a_setting_says_is_taken_or_one_message(
    template: Path, command: str, key: str, value: object
) -> None:
    with copied(template) as folder:
        tree = yaml.safe_load((folder / "params.yaml").read_text())
        section, _, name = key.partition(".")
        tree.setdefault(section, {})[name] = value
        (folder / "params.yaml").write_text(yaml.safe_dump(tree, allow_unicode=False))
        code, said = check(command)
        if code == 2 and "wrong value" in said:
            assert key in said


@drawn
@given(command=st.sampled_from(COMMANDS), file=st.sampled_from(FILES), form=st.sampled_from(sorted(FORMS)))
def test_whatever_a_file_is_in_truth_is_taken_or_one_message(
    template: Path, command: str, file: str, form: str
) -> None:
    with copied(template) as folder:
        path = folder / file
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        FORMS[form](path)
        check(command)
