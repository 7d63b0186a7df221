"""Figures of matplotlib as SVG that takes its colours from the page.

A figure is drawn with stand-ins for colours, which become variables of the page's style sheet: so one drawing
serves light and dark, and a teacher has its colour everywhere. Ids are made unique to the figure, and the style
rules that matplotlib would set for the whole page are dropped. Text stays text: it can be searched and enlarged.
"""

import io
import re
import warnings
from html import escape
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from matplotlib.figure import Figure


NUM_COLOURS = 8
"""Colours of teachers; after that they begin again, with another stroke."""

TEACHERS = tuple(f"#0101{index:02x}" for index in range(NUM_COLOURS))
INK = "#010201"
MUTED = "#010202"
LINE = "#010203"
STUDENT = "#010204"
PAPER = "#010205"
"""Stand-ins: nobody else draws in these."""

_VARIABLES = {
    **{colour: f"var(--t{index})" for index, colour in enumerate(TEACHERS)},
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    STUDENT: "var(--student)",
    PAPER: "var(--paper)",
}

STROKES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "v", "P", "p", "h", "*")


def style() -> dict[str, Any]:
    """Settings of matplotlib for these figures."""
    return {
        "svg.fonttype": "none",
        "text.parse_math": False,
        "font.size": 10,
        "axes.edgecolor": LINE,
        "axes.labelcolor": INK,
        "axes.titlecolor": INK,
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": LINE,
        "grid.linewidth": 0.5,
        "text.color": INK,
        "xtick.color": LINE,
        "ytick.color": LINE,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
    }


def to_svg(figure: "Figure", name: str, title: str) -> str:
    """The figure as an `svg` element.

    Args:
        figure: Drawn in the stand-ins.
        name: Unique on the page.
        title: Read aloud in its place.
    """
    buffer = io.StringIO()
    with warnings.catch_warnings():  # of glyphs that only the browser has
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", text)
    for stand_in, variable in _VARIABLES.items():
        text = text.replace(stand_in, variable)
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", text)
    opening = re.compile(r"<svg[^>]*viewBox=\"([^\"]+)\"[^>]*>")
    label = escape(title, quote=True)
    head = (
        rf'<svg role="img" aria-label="{_literal(label)}" viewBox="\1" xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    return opening.sub(head, text, count=1)


def _literal(text: str) -> str:
    """For the replacement of a regular expression."""
    return text.replace("\\", "\\\\")
