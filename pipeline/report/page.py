"""Fill a template of a page: escaped, and strict about names that are missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

from pipeline.report.tables import number, percent


def render(template: Path, **values: Any) -> str:
    """Return the page that a template gives with these values; it may include files beside it."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    environment.filters["number"] = number
    return environment.get_template(template.name).render(**values).strip() + "\n"
