"""Write docs/api.md from the docstrings of the names that `models` exports.

python docs/make_api.py
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "api.md"
GROUPS = {
    "Losses": [
        "exact_cross_entropy",
        "EmbeddingCrossEntropy",
        "knn_cross_entropy",
        "sampled_cross_entropy",
        "separation_loss",
    ],
    "Nearest classes": ["nearest_classes", "predict_classes"],
    "Networks of others": ["features_before"],
    "Heads": ["EmbeddingHead", "SoftmaxHead"],
    "Whole networks": ["SegmenterConfig", "build_segmenter", "Segmenter"],
}
INTRODUCTION = """\
# The library

<!-- Written by docs/make_api.py from the docstrings: change those, then run it. -->

`pip install ./models` in a checkout (or from git, with `#subdirectory=models`) installs the package
`kiloseg`, which needs torch only. `build_segmenter` needs timm as well: `pip install "./models[timm]"`. In a
checkout the same package is called `models`.

    from kiloseg import EmbeddingHead, exact_cross_entropy

    head = EmbeddingHead(in_channels=256, embedding_dim=16, num_classes=2000)
    loss = exact_cross_entropy(head(features), head.class_embeddings, target)

`examples/` has whole programs. Shapes: N images, P pixels, C classes, D channels of an embedding; h x w
is the network's resolution, H x W the target's.
"""
SECTIONS = ("Args", "Attributes", "Returns", "Raises")


def page() -> str:
    """Return the text of docs/api.md."""
    sys.path.insert(0, str(ROOT))
    import models

    listed = sorted(name for names in GROUPS.values() for name in names)
    assert listed == sorted(models.__all__), f"GROUPS has {listed}, models.__all__ {sorted(models.__all__)}"
    lines = [INTRODUCTION]
    for title, names in GROUPS.items():
        lines.append(f"## {title}\n")
        for name in names:
            lines += described(name, getattr(models, name), "###")
    return "\n".join(lines).rstrip() + "\n"


def described(name: str, thing: Any, heading: str) -> Iterator[str]:
    """Yield the paragraphs of a function or of a class with its own public methods."""
    yield f"{heading} `{name}`\n"
    yield f"```python\n{signature(name, thing)}\n```\n"
    yield markdown(inspect.getdoc(thing) or "")
    if not inspect.isclass(thing):
        return
    for method_name, method in vars(thing).items():
        if method_name.startswith("_") or method_name == "extra_repr":
            continue
        full = f"{name}.{method_name}"
        if isinstance(method, property):
            yield f"#### `{full}` (property)\n"
            yield markdown(inspect.getdoc(method) or "")
        elif inspect.isroutine(method):
            yield from described(full, getattr(thing, method_name), "####")


def signature(name: str, thing: Any) -> str:
    """Return `name(parameter: type = default, ...) -> type`, one parameter per line from three on."""
    found = inspect.signature(thing)
    parts, keyword_only = [], False
    for parameter in found.parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            keyword_only = True
            parts.append("*")
        text = f"{parameter.name}: {parameter.annotation}"
        parts.append(text if parameter.default is parameter.empty else f"{text} = {parameter.default!r}")
    returned = "" if inspect.isclass(thing) else f" -> {found.return_annotation}"
    if len(parts) < 3:
        return f"{name}({', '.join(parts)}){returned}"
    return f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){returned}"


def markdown(docstring: str) -> str:
    """Turn a Google-style docstring into Markdown: sections become bold titles, their entries lists."""
    lines: list[str] = []
    section = ""
    for line in docstring.splitlines():
        if line.rstrip(":") in SECTIONS and line.endswith(":"):
            section = line.rstrip(":")
            lines += [f"**{'Arguments' if section == 'Args' else section}**", ""]
        elif section in ("Args", "Attributes", "Raises") and (
            entry := re.match(r"    (\w[\w, ]*): (.*)", line)
        ):
            lines.append(f"- `{entry[1]}`: {entry[2]}")
        elif section and line.strip():
            indent = "" if section == "Returns" else "  "
            lines.append(indent + line.strip())
        else:
            lines.append(line)
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
