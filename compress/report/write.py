"""Renders a result as `report.html`: one file, no script, nothing fetched from anywhere.

Names in it come from models and files that nobody vouches for: every text goes through Jinja's
escaping, but for the plots, which matplotlib escapes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from compress.report.formats import printable
from compress.report.mixed import mixed_plots
from compress.report.plots import draw_plots
from compress.report.training import training_plots
from compress.report.view import view
from compress.result import Result

REPORT = "report.html"


def write_report(out_dir: Path, result: Result) -> Path:
    """Write `report.html` into an existing folder, whole or not at all, and return its path."""
    path = out_dir / REPORT
    part = path.with_name(path.name + ".part")
    part.write_text(render(result), encoding="utf-8")
    part.replace(path)
    return path


def render(result: Result) -> str:
    """Return the report's HTML."""
    environment = Environment(
        loader=PackageLoader("compress", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.jinja").render(
        **view(result),
        plots=draw_plots(result),
        mixed_plots=mixed_plots(result),
        training_plots=training_plots(result),
    )


def _finalize(value: Any) -> Any:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value
