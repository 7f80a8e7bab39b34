"""Matplotlib figures as SVG that takes its colours and its font from the page around it.

Plots are drawn narrow, as wide as a phone, so that their texts stay as large as the page's; on wide
screens they stand side by side. Colours are stand-ins until the SVG is written, then CSS variables:
the same plot is readable in light, in dark and in print.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from compress.report.formats import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_IN = 4.6
INK, MUTED, GRID, PAPER = "#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04"
SERIES = ("#0a0c01", "#0a0c02", "#0a0c03", "#0a0c04", "#0a0c05", "#0a0c06")
_VARIABLES = {
    INK: "--ink", MUTED: "--muted", GRID: "--line", PAPER: "--paper",
    **{color: f"--series-{index}" for index, color in enumerate(SERIES)},
}  # fmt: skip
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 9.5,
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "figure.facecolor": "none",
    "path.simplify": True,
}


def draw(key: str, title: str, height_in: float, paint: Callable[[Figure, Axes], None]) -> Markup:
    """Return an inline SVG.

    Args:
        key: Told apart from other plots of the page by it: letters only.
        title: For screen readers.
        height_in: Height in inches; the width is always the same.
        paint: Fills the axes.
    """
    import matplotlib  # seconds of import that only a finished job should pay
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**_SETTINGS, "svg.hashsalt": key}), warnings.catch_warnings():
        # the page's font, not matplotlib's, draws the glyphs
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
        FigureCanvasSVG(figure)
        paint(figure, figure.add_subplot())
        written = io.StringIO()
        figure.savefig(
            written, format="svg", metadata={"Date": None, "Creator": None, "Format": None,
                                             "Type": None}
        )  # fmt: skip
    return _inline(written.getvalue(), key, title)


def label_text(text: str) -> str:
    """Return text that is safe to hand to matplotlib: printable, on one line."""
    return printable(text).replace("\n", " ").replace("\t", " ")


def _inline(text: str, key: str, title: str) -> Markup:
    body = text[text.index("<defs", text.index("<svg")) : text.rindex("</svg>")]
    width, height = re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)[0]
    body = re.sub(r"<style[^>]*>.*?</style>", "", body, count=1, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r'(\bid="|href="#|url\(#)(\w+)', rf"\g<1>{key}-\2", body)
    for color, variable in _VARIABLES.items():
        body = body.replace(color, f"var({variable})")
    return Markup(
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">{body}</svg>'
    )
