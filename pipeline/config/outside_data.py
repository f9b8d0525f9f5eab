"""Make a relative `data.root` outside the project reachable from the temporary copies of DVC's experiments.

`dvc exp run --temp` and the queue copy the project to .dvc/tmp/exps/standalone/NAME and .dvc/tmp/exps/NAME.
They look for a stage's dependencies from there before they start it. Links in those folders lead to where the
path leads from the project.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from pipeline.config.schema import Settings

_COPIES = (".dvc/tmp/exps/standalone/copy", ".dvc/tmp/exps/copy")
"""Places of copies, with any last name."""


def link_outside_data(settings: Settings) -> list[Path]:
    """Make the links, relative ones, if `data.root` lies outside and the project is a DVC repository's root.

    Returns:
        The links, those that were there too. A place that is taken is left as it is.
    """
    project, links = settings.project, []
    parts = Path(os.path.relpath(settings.data.root, project)).parts
    up = sum(part == ".." for part in parts)
    if not 0 < up < len(parts) or not (project / ".dvc").is_dir():
        return []
    target = Path(os.path.normpath(project.joinpath(*parts[: up + 1])))
    for copy in _COPIES:
        link = Path(os.path.normpath((project / copy).joinpath(*parts[: up + 1])))
        if not link.is_relative_to(project / ".dvc"):
            continue  # in the project's own folders nothing is made
        with contextlib.suppress(OSError):
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists() and not link.is_symlink():
                link.symlink_to(os.path.relpath(target, link.parent))
            if link.is_symlink() and link.resolve() == target.resolve():
                links.append(link)
    return links
