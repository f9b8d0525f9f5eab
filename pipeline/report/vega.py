"""Put Vega into pages that need no network, and charts described in Vega-Lite beside it.

Vega was chosen since DVC's own pages are drawn by it, and so that people can point at things: matplotlib's
SVG had to be rewritten for the page's colors and tells nothing. Plotly's script is five times as large. The
scripts (Vega, Vega-Lite, vega-embed: BSD-3-Clause) come from the package vl-convert-python; nothing of them
is kept here.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pipeline.runtime.files import write_text

Spec = dict[str, Any]
CONFIG: Spec = {  # the page's variables, so that a chart is right on light and dark pages
    "background": None,
    "font": "system-ui, -apple-system, Segoe UI, Roboto, Noto Sans, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--soft)",
        "titleColor": "var(--soft)",
        "titleFontWeight": "normal",
        "gridColor": "var(--line)",
        "domainColor": "var(--line)",
        "tickColor": "var(--line)",
        "labelFontSize": 11,
        "titleFontSize": 12,
        "labelFlush": False,
    },
    "text": {"fill": "var(--ink)", "fontSize": 11},
    "rule": {"stroke": "var(--soft)"},
}


def completed(spec: Spec) -> Spec:
    """Return a chart as wide as its place and in the page's colors."""
    schema = "https://vega.github.io/schema/vega-lite/v6.json"
    return {"$schema": schema, "width": "container", "height": 250, "config": CONFIG, **spec}


def embedded(value: object) -> Markup:
    """Return JSON for a script element: no text in it can end the element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c"))


@cache
def vega_script() -> Markup:
    """Return the script that defines `vegaEmbed`, 0.9 MB."""
    import vl_convert  # takes a moment, like what it is asked for

    text: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    whole = f"(() => {{\n{text}\n}})();"  # its own names are not the page's
    return Markup(whole.replace("</script", "<\\/script"))  # only ever in a string of the script


def write_plots_page(path: Path) -> None:
    """Write the page in which DVC puts plots (`plots.html_template`), with all that draws them in it."""
    template = Path(__file__).with_name("plots.html").read_text(encoding="utf-8")
    write_text(path, template.replace("{vega}", vega_script()))
