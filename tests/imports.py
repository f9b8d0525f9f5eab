"""Which of our modules a source file imports, read from its text: nothing is run."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

from tests.paths import ROOT

FLOORS = ("models", "pipeline", "stages")


def module_of(path: Path) -> str:
    """The dotted name of a source file; a package's name for its `__init__.py`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def file_of(module: str) -> Path | None:
    """The file of one of our modules or packages, else None."""
    path = ROOT.joinpath(*module.split("."))
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((candidate for candidate in candidates if candidate.is_file()), None)


@cache
def imported_names(path: Path) -> frozenset[str]:
    """Full names of all modules, and of what is taken from them, that a file imports, anywhere in it."""
    package = module_of(path) if path.name == "__init__.py" else module_of(path).rpartition(".")[0]
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*parents, *([node.module] if node.module else [])])
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return frozenset(names)


def own_imports(path: Path) -> set[str]:
    """Our modules that a file imports by name; not the packages in which they lie."""
    named = {name for name in imported_names(path) if name.partition(".")[0] in FLOORS}
    modules = {name for name in named if file_of(name) is not None}
    unknown = named - modules
    # `from package.module import name`: the name is no module, the module is
    modules |= {name.rpartition(".")[0] for name in unknown if file_of(name.rpartition(".")[0]) is not None}
    inner = {module.rpartition(".")[0] for module in modules}
    return {module for module in modules if module not in inner or _is_used_itself(module, unknown)}


def _is_used_itself(package: str, names: set[str]) -> bool:
    return any(name.rpartition(".")[0] == package for name in names)


def reached_from(module: str) -> set[str]:
    """All our modules that importing one may bring, functions' own imports included; itself too."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        current = waiting.pop()
        path = file_of(current)
        if current not in seen and path is not None:
            seen.add(current)
            waiting += own_imports(path)
    return seen
