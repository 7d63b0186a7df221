"""Styles of series in all figures: a teacher has one colour, one stroke and one marker everywhere.

So nobody needs to distinguish colours. The colours (in `style.css`) are those of Okabe and Ito, lightened on dark
pages.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from collegium.base.visible import visible
from collegium.report.svg import MARKERS, NUM_COLOURS, STROKES, TEACHERS


if TYPE_CHECKING:
    from matplotlib.axes import Axes


STUDENT_LABEL = "student"
"""Name of the student in legends and in the token view."""


def colour(index: int) -> str:
    """Colour of a teacher, by its place in the recipe."""
    return TEACHERS[index % NUM_COLOURS]


def stroke(index: int) -> str:
    """Likewise."""
    return STROKES[index % len(STROKES)]


def marker(index: int) -> str:
    """Likewise."""
    return MARKERS[index % len(MARKERS)]


def colour_class(teachers: Sequence[str], name: str) -> str:
    """Class of the style sheet with the colour of a teacher."""
    return f"t{teachers.index(name) % NUM_COLOURS}"


def teacher_name(name: str) -> str:
    """A teacher's name beside the student, which is called `student`: so may a teacher be."""
    return f"teacher {name}" if name == STUDENT_LABEL else name


def label(text: str, limit: int = 24) -> str:
    """A name as it stands beside an axis or in a legend, on one line and not longer than there is room for."""
    shown = visible(" ".join(text.split()))
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"


def teacher_label(name: str) -> str:
    """A teacher's name, likewise."""
    return label(teacher_name(name))


def legend_above(axes: "Axes") -> None:
    """Outside of the data, which it would hide at this size."""
    handles, labels = axes.get_legend_handles_labels()
    columns = 3 if max((len(label) for label in labels), default=0) < 18 else 2
    axes.legend(handles, labels, loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=columns, columnspacing=1.2)


def plain_ticks(axes: "Axes") -> None:
    """Such as 20 and 500 in place of powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    low, high = axes.get_xlim()
    steps = (1.0, 2.0, 5.0) if high / low < 100 else (1.0, 3.0) if high / low < 3000 else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=steps))
    formatter = ScalarFormatter()
    formatter.set_scientific(False)
    axes.xaxis.set_major_formatter(formatter)
    axes.xaxis.set_minor_formatter(NullFormatter())
