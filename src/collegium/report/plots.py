"""All figures of a run. Each is one panel, to be read at 400 pixels and to stand beside others at 1400."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from collegium.base.errors import RecipeError
from collegium.report.held_out_plots import certainty, losses, reliability, shares
from collegium.report.records import RunRecord
from collegium.report.svg import style, to_svg
from collegium.report.training_plots import conflict, learning, terms, weights


if TYPE_CHECKING:
    from matplotlib.axes import Axes


WIDTH = 5.4
HEIGHT = 3.3
"""Inches of a panel, 72 points each."""


@dataclass(frozen=True)
class Plot:
    """A drawn figure.

    Attributes:
        title: What it shows.
        caption: How to read it.
        svg: The figure itself.
    """

    title: str
    caption: str
    svg: str


@dataclass(frozen=True)
class _Drawing:
    """A figure to be drawn; rows of domains make it higher."""

    title: str
    caption: str
    draw: "Callable[[Axes, RunRecord], bool]"
    has_rows: bool = False


_DRAWINGS = {
    "losses": _Drawing(
        "Perplexity on held-out text", "Lower is better; bars are intervals over documents.", losses, has_rows=True
    ),
    "learning": _Drawing("Loss on held-out text while training", "Mean over domains.", learning),
    "terms": _Drawing("Terms of the loss", "On training text.", terms),
    "weights": _Drawing("Weight of each teacher while training", "Mean over the tokens of a step.", weights),
    "shares": _Drawing(
        "Weight of each teacher by domain", "On held-out text, by the recipe's rule.", shares, has_rows=True
    ),
    "conflict": _Drawing("Conflict among the teachers", "On training text; 0 where all say the same.", conflict),
    "reliability": _Drawing(
        "Is the student as right as it is sure?",
        "On the diagonal it is; below, it is overconfident. Bins of few tokens are left out.",
        reliability,
    ),
    "certainty": _Drawing(
        "Are the teachers as sure as they are right?",
        "A mark for each domain; above the diagonal a teacher is overconfident and weighs more than it earns.",
        certainty,
    ),
}


def draw_all(run: RunRecord, prefix: str = "") -> list[Plot]:
    """All figures for which the run has something.

    Args:
        run: The run.
        prefix: Of ids, unique to the run.

    Raises:
        RecipeError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise RecipeError("reports are drawn by matplotlib: pip install 'collegium[report]'") from error
    settings: Any = style()
    with matplotlib.rc_context(settings):
        return list(_drawn(run, prefix))


def _drawn(run: RunRecord, prefix: str) -> Iterator[Plot]:
    from matplotlib.figure import Figure

    for name, drawing in _DRAWINGS.items():
        height = 1.3 + 0.42 * len(run.domains) if drawing.has_rows else HEIGHT
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        if drawing.draw(figure.subplots(), run):
            label = f"{drawing.title}. {drawing.caption}"
            yield Plot(drawing.title, drawing.caption, to_svg(figure, f"{prefix}{name}", label))
