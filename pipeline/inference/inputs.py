"""Turn what a user names into pictures: files, folders, globs, and a list on standard input."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.data.store.listing import list_files
from pipeline.inference.images import SUFFIXES
from pipeline.inference.outputs import output_paths
from pipeline.runtime.errors import DataError, UsageError


@dataclass(frozen=True)
class Input:
    """A picture to predict.

    Attributes:
        path: its file, which may turn out to be missing.
        name: what its outputs are called, with "/" for folders.
    """

    path: Path
    name: str


def find_inputs(arguments: Sequence[str], listed: Iterable[str], out: Path) -> list[Input]:
    """Return the pictures that the arguments mean, each once, in the order given.

    Outputs are called as the picture without its suffix; of a folder's pictures, with the folders below it.
    Pictures that would share a name (a.jpg and a.png) keep their suffixes in it.

    Args:
        arguments: files, folders (searched below, by suffix), globs, or "-" for `listed`.
        listed: lines with more of them, such as those of standard input.
        out: folder of the outputs, in which no pictures are looked for.

    Raises:
        DataError: no picture at all.
        UsageError: two pictures would share their outputs, or outputs would replace a picture.
    """
    named: dict[Path, PurePosixPath] = {}
    for argument in arguments:
        for text in (line.rstrip("\r\n") for line in listed) if argument == "-" else [argument]:
            if text:
                for path, name in _expanded(text, out):
                    named.setdefault(path, name)
    if not named:
        raise DataError(
            "no picture",
            where=" ".join(arguments),
            allowed=f"files, globs, or folders with {', '.join(sorted(SUFFIXES))}",
            hint="check the paths",
        )
    stems = Counter(str(name.with_suffix("")) for name in named.values())
    found = [
        Input(path, str(name if stems[str(name.with_suffix(""))] > 1 else name.with_suffix("")))
        for path, name in named.items()
    ]
    _check_names(found, out)
    return found


def _expanded(text: str, out: Path) -> list[tuple[Path, PurePosixPath]]:
    """Files with their names; what is neither file, folder nor glob stays, to be named as missing."""
    path = Path(text)
    if path.is_dir():
        outputs = out.resolve()
        below = [p for p in list_files(path, sorted(SUFFIXES)) if p.is_file()]
        return [
            (p, PurePosixPath(p.relative_to(path)))
            for p in below
            if outputs == path.resolve() or outputs not in p.resolve().parents
        ]
    if not path.exists() and glob.has_magic(text):
        matches = sorted(Path(match) for match in glob.glob(text, recursive=True))  # noqa: PTH207
        if matches:
            return [(match, PurePosixPath(match.name)) for match in matches if match.is_file()]
    return [(path, PurePosixPath(path.name))]


def _check_names(found: Sequence[Input], out: Path) -> None:
    first: dict[str, Input] = {}
    for one in found:
        other = first.setdefault(one.name, one)
        if other is not one:
            raise UsageError(
                "two pictures would share their outputs",
                where=out / one.name,
                found=f"{other.path} and {one.path}",
                hint="name the folder above both instead of the files, or predict them into two folders",
            )
    sources = {one.path.resolve(): one.path for one in found}
    for one in found:
        for output in output_paths(out, one.name, rle=True).values():
            if output.resolve() in sources:
                raise UsageError(
                    "an output would replace a picture",
                    where=sources[output.resolve()],
                    allowed="outputs in a folder of their own",
                    hint="name another --out",
                )
