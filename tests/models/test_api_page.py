"""docs/api.md is what docs/make_api.py makes of the docstrings."""

from __future__ import annotations

import runpy

from tests.paths import ROOT


def test_the_page_is_up_to_date() -> None:
    program = runpy.run_path(str(ROOT / "docs" / "make_api.py"))
    written = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert program["page"]() == written, "run: python docs/make_api.py"
