"""From facts to the HTML text."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

from ...errors import UsageError
from ..verdict import Verdict, verdict_of
from .charts import charts
from .facts import PageFacts
from .highlights import highlights
from .tables import FIGURES, condition_name, domain_columns, domain_rows, has_swap, shown, swap_rows

TEMPLATE, STYLE, SCRIPT = "page.html.j2", "page.css", "page.js"
INSTALL = "the report needs the extra: pip install 'koffkit[report]'."


def render(facts: PageFacts, script: str) -> str:
    """The page.

    Args:
        facts: what it shows.
        script: the chart library, from `chart_library`.

    Raises:
        UsageError: jinja2, of the extra `report`, is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError:
        raise UsageError(INSTALL) from None
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "size": readable,
        "percent": _percent,
        "condition": condition_name,
        "figure_text": lambda value, figure: shown(figure, value),
    }
    template, drawn = environment.from_string(_part(TEMPLATE)), charts(facts)
    return template.render(
        facts=facts,
        verdict=verdict_of(facts.results),
        tone=tone(verdict_of(facts.results)),
        highlights=highlights(facts),
        columns=domain_columns(facts.results),
        rows_of=domain_rows,
        swap_rows=swap_rows,
        has_swap=has_swap(facts.results),
        figures=FIGURES,
        condition_name=condition_name,
        style=_part(STYLE),
        library=script,
        script=_part(SCRIPT),
        drawn=drawn,
        specs=inert_json(drawn),
    )


def chart_library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, from the package vl-convert-python.

    Raises:
        UsageError: it is not installed.
    """
    try:
        from vl_convert import javascript_bundle
    except ImportError:
        raise UsageError(INSTALL) from None
    bundle: Any = javascript_bundle  # its stub asks for the argument that has a default
    text: str = bundle()
    return text.replace("</script", "<\\/script")


def inert_json(value: Any) -> str:
    """JSON that is safe inside a `script` element: no name from a run can close it."""
    text = json.dumps(value, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@cache
def _part(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def tone(verdict: Verdict) -> str:
    """How the verdict is coloured: `good`, `mixed`, `bad` or, without figures, `none`."""
    if verdict.moved is None:
        return "none"
    if verdict.harmed:
        return "bad"
    return "good" if verdict.moved and not verdict.warnings else "mixed"


def readable(size: int) -> str:
    """Bytes in the largest decimal unit that leaves a whole part."""
    value = float(size)
    for unit in ("bytes", "kB", "MB", "GB"):
        if abs(value) < 1000:
            return f"{value:,.0f} {unit}" if unit == "bytes" else f"{value:,.1f} {unit}"
        value /= 1000
    return f"{value:,.1f} TB"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
