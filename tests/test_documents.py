"""The documents name what there is: commands, options, settings, modules, files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from pipeline.cli.main import app
from pipeline.config.schema import SECTIONS, Settings
from tests.paths import ROOT

HISTORY = {"CHANGELOG.md", "LOG.md"}  # may name what was
DOCUMENTS = sorted(
    path for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")] if path.name not in HISTORY
)
each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8").replace("\\\n", " ")


def command_lines(text: str) -> Iterator[list[str]]:
    """The words after `pipeline` wherever it is called, in a block or between backquotes."""
    for match in re.finditer(r"(?:^|`|&& )[ \t]*pipeline[ \t]+([^`\n#;()]+)", text, re.MULTILINE):
        yield match[1].split()


def unknown_in(words: list[str]) -> list[str]:
    """What the command line would refuse: a command that there is not, options that it does not take."""
    command: Any = get_command(app)
    rest = list(words)
    while rest and rest[0] in getattr(command, "commands", {}):
        command = command.commands[rest.pop(0)]
    if len(rest) == len(words) and not words[0].startswith("--"):
        return words
    known = {"--help"} | {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
    return [word for word in rest if word.startswith("--") and word.partition("=")[0] not in known]


def test_the_check_of_commands_sees_calls_and_mistakes() -> None:
    text = "a\npipeline tune --resume  # on\n`pipeline data show OUT 9 --to x`\npipelines"
    lines = list(command_lines(text))
    assert lines == [["tune", "--resume"], ["data", "show", "OUT", "9", "--to", "x"]]
    assert not any(unknown_in(words) for words in lines)
    assert unknown_in(["tune", "best", "--resume"]) == ["--resume"]
    assert unknown_in(["train", "exact"]) == ["train", "exact"]
    assert sum(len(list(command_lines(text_of(path)))) for path in DOCUMENTS) > 30


@each_document
def test_documented_commands_have_the_options_they_are_given(path: Path) -> None:
    for words in command_lines(text_of(path)):
        assert not unknown_in(words), " ".join(words)


@each_document
def test_documented_settings_exist(path: Path) -> None:
    sections = "|".join(set(SECTIONS) - {"variants"})
    files = "md|yaml|onnx|pt2|xml|bin|safetensors"
    for section, key in re.findall(rf"(?<![\w./])({sections})\.(?!(?:{files})\b)([a-z]\w*)", text_of(path)):
        kind: Any = Settings.model_fields[section].annotation
        assert key in kind.model_fields, f"{section}.{key}"


@each_document
def test_documented_modules_and_files_exist(path: Path) -> None:
    text = text_of(path)
    for module in re.findall(r"python -m ((?:benchmarks|stages)\.\w+)", text):
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module
    for name in re.findall(r"(?<![\w./])((?:models|pipeline|stages|tests|benchmarks|docs)/[\w./-]*\w)", text):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"`(test_\w+\.py)`", text):
        assert list((ROOT / "tests").rglob(name)), name
    for name in re.findall(r"\]\(([\w./-]+)\)", text):
        assert (path.parent / name).exists(), name
