"""Text from recipes and data as Markdown that shows it and does nothing else.

Names, licences and references are other people's words: in a page that is rendered they could be links,
images, HTML or new table cells. Everything that means something to Markdown or HTML is escaped, and
characters that hide or turn text are shown as what they are.
"""

import re
from collections.abc import Sequence

from collegium.base.visible import visible


_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+.!|~^$:@/=-])")
_HTML = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;"})
_HARMLESS = re.compile(r"[\w .,%-]*", re.ASCII)
_NOT_HARMLESS = re.compile(r"__|(^|\s)[-_]|[-_](\s|$)|^\d+\.|www\.", re.IGNORECASE)


def escaped(text: str) -> str:
    """The text as Markdown that renders as it is: no link, no markup, no cell border, no HTML."""
    shown = visible(" ".join(text.split()))
    if _HARMLESS.fullmatch(shown) and not _NOT_HARMLESS.search(shown):
        return shown  # most names: left readable in the source
    return _escaped_html(shown)


def _escaped_html(shown: str) -> str:
    """HTML first, so that its own `&` and `#` are not escaped again."""
    parts = [part.translate(_HTML) if part in "&<>\"'" else _MARKDOWN.sub(r"\\\1", part) for part in shown]
    return "".join(parts)


def code_block(text: str, language: str = "") -> str:
    """The text as a fenced block that it cannot end by itself."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{visible(text).rstrip()}\n{fence}"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are Markdown already."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
