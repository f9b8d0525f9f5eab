"""Let `dvc plots show` and `diff` draw without the network: python -m pipeline.report.plots_page.

DVC's own page fetches Vega from outside. A page that has it inside is written into `.dvc` and named in
`.dvc/config.local`, which belongs to this machine: a project without the page keeps DVC's own.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pipeline.report.vega import write_plots_page
from pipeline.runtime.errors import KilosegError
from pipeline.runtime.signals import run_command

NAME = "plots_page.html"


def install(project: Path) -> None:
    """Write the page and name it in the settings of DVC in `project`, if that is a DVC project.

    Raises:
        KilosegError: DVC's settings cannot be written.
    """
    from dvc.config import Config, ConfigError

    folder = project / ".dvc"
    if not folder.is_dir():
        return
    write_plots_page(folder / NAME)
    try:
        with Config(str(folder), validate=True).edit("local") as settings:
            settings["plots"]["html_template"] = NAME  # relative to .dvc
    except ConfigError as error:
        raise KilosegError("DVC's settings cannot be changed", where=folder, found=error) from error


if __name__ == "__main__":
    sys.exit(run_command(lambda: install(Path.cwd())))
