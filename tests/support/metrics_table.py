"""The table of `docs/metrics.md`."""

import re
from pathlib import Path


PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
WORDS = {"NAME": r"[^/]+", "DOMAIN": r"[^/]+", "RULE": r".+", "STRETCH": r".+", "I": r"\d+"}
"""Words that stand for names and numbers."""


def rows() -> dict[str, list[str]]:
    """Cells behind each key of the page."""
    found = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            key, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            found[key.strip("`")] = cells
    return found


def is_in_the_table(logged: str) -> bool:
    """True for a key as a log has it."""
    metric = re.sub(r"^(train|eval)/", "", logged)
    patterns = (re.sub("|".join(WORDS), lambda match: WORDS[match[0]], re.escape(key)) for key in rows())
    return any(re.fullmatch(pattern, metric) for pattern in patterns)
