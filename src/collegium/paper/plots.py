"""Figures of the results as SVG: the same JSON and the same matplotlib give the same bytes.

Colours are Okabe and Ito's, text is readable at a width of 400 pixels, and the background is white on dark pages
too. The metadata of each file names the JSON that it was drawn from.
"""

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collegium.base.digest import json_digest
from collegium.base.terminal import say
from collegium.paper.markdown import group_rows
from collegium.paper.measured import Measured, MeasuredRow, Task
from collegium.paper.spread import Spread
from collegium.report.metric_names import ECE, KL_COMMON, PERPLEXITY


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


OURS = "#D55E00"
OTHER = "#0072B2"
ACCENT = "#009E73"

WIDTH = 5.5
"""Inches: 400 pixels at the usual size."""

STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "collegium",
    "svg.fonttype": "none",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}
PERPLEXITY_AXIS = "perplexity (less is better)"


def fingerprint(results: Measured) -> str:
    """Hash of an experiment's JSON, by which figures name it."""
    return json_digest(results.content)[:16]


def draw_all(results: Mapping[str, Measured], folder: Path) -> None:
    """Draw `folder/EXPERIMENT.svg` for each; without matplotlib it says so, since the page needs no figures."""
    try:
        import matplotlib
    except ImportError:
        say("figures are not drawn, which needs matplotlib: pip install 'collegium[report]'")
        return
    folder.mkdir(parents=True, exist_ok=True)
    for name, measured in results.items():
        with matplotlib.rc_context(STYLE):
            metadata = {"Date": None, "Description": f"results {fingerprint(measured)}"}
            draw(measured).savefig(folder / f"{name}.svg", metadata=metadata)


def draw(results: Measured) -> "Figure":
    """Draw the figure of an experiment."""
    drawings: Mapping[str, Callable[[Measured], Figure]] = {
        "table1": _table1,
        "figure2": _figure2,
        "figure3": _figure3,
        "conditions": _conditions,
    }
    return drawings[results.experiment](results)


def _panels(height: float, rows: int, columns: int, heights: Sequence[float]) -> "tuple[Figure, list[list[Axes]]]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, height_ratios=heights)
    return figure, [list(row) for row in axes]


def _merged(axes: "list[Axes]") -> "Axes":
    """One wide panel in place of a row of them."""
    grid = axes[0].get_gridspec()
    row = axes[0].get_subplotspec()
    assert grid is not None and row is not None
    figure = axes[0].get_figure()
    assert figure is not None
    for axis in axes:
        axis.remove()
    merged: Axes = figure.add_subplot(grid[row.rowspan.start, :])
    return merged


@dataclass(frozen=True)
class Dot:
    """A line of a dot plot.

    Attributes:
        label: Text beside it.
        spread: Mean and interval; None leaves the line empty.
        ours: Whether it stands out.
    """

    label: str
    spread: Spread | None
    ours: bool = False

    @classmethod
    def of_row(cls, row: MeasuredRow, spread: Spread | None) -> "Dot":
        """A row's line."""
        return cls(row.label, spread, row.name == "ours")


def _table1(results: Measured) -> "Figure":
    lines: list[Dot | str] = []
    for group in results.groups:
        lines += [group, *_dots_of(_sorted(results.in_group(group)), PERPLEXITY)]
    height = sum(_height(line) for line in lines)
    figure, axes = _panels(0.6 + height, 1, 1, [1])
    _draw_dots(axes[0][0], lines, PERPLEXITY_AXIS)
    return figure


def _dots_of(rows: Sequence[MeasuredRow], figure: str) -> list[Dot]:
    return [Dot.of_row(row, row.spread(figure)) for row in rows]


def _sorted(rows: Sequence[MeasuredRow]) -> list[MeasuredRow]:
    def perplexity(row: MeasuredRow) -> float:
        spread = row.spread(PERPLEXITY)
        return math.inf if spread is None else spread.mean

    return sorted(rows, key=perplexity)


def _height(line: Dot | str) -> float:
    """Height of a line in inches."""
    return 0.22 if isinstance(line, str) else 0.06 + 0.14 * len(_label(line).splitlines())


def _label(line: Dot, width: int = 34) -> str:
    return textwrap.fill(line.label, width)


def _draw_dots(axis: "Axes", lines: Sequence[Dot | str], title: str, factor: float = 1.0) -> None:
    """Draw a mean and an interval in each line, ours in another colour; headings are bold."""
    if not lines:
        axis.set_visible(False)
        return
    places = []
    place = 0.0
    for line in lines:
        place += _height(line) / 2
        places.append(place)
        place += _height(line) / 2
    for y, line in zip(places, lines, strict=True):
        if isinstance(line, Dot) and line.spread is not None:
            _draw_dot(axis, y, line.spread, factor, ours=line.ours)
    axis.set_yticks(places, [line if isinstance(line, str) else _label(line) for line in lines])
    for text, line in zip(axis.get_yticklabels(), lines, strict=True):
        text.set_fontweight("bold" if isinstance(line, str) else "normal")
        text.set_color(OURS if isinstance(line, Dot) and line.ours else "black")
    axis.set_ylim(place, 0.0)
    axis.set_xlabel(title)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x", alpha=0.25)


def _draw_dot(axis: "Axes", y: float, spread: Spread, factor: float, *, ours: bool) -> None:
    colour, marker = (OURS, "D") if ours else (OTHER, "o")
    if spread.low is not None and spread.high is not None:
        axis.plot([factor * spread.low, factor * spread.high], [y, y], color=colour, linewidth=1.4)
    axis.plot([factor * spread.mean], [y], color=colour, marker=marker, markersize=4.5, linestyle="none")


def _draw_line(
    axis: "Axes", points: Mapping[int, MeasuredRow], figure: str, label: str, colour: str, marker: str
) -> None:
    """Draw a figure over a number, with intervals."""
    known = {x: spread for x, row in points.items() if (spread := row.spread(figure)) is not None}
    if not known:
        return
    means = [spread.mean for spread in known.values()]
    axis.plot(list(known), means, color=colour, marker=marker, markersize=4, linewidth=1.2, label=label)
    for x, spread in known.items():
        if spread.low is not None and spread.high is not None:
            axis.plot([x, x], [spread.low, spread.high], color=colour, linewidth=1.2)


def _figure2(results: Measured) -> "Figure":
    bad = _dots_of(group_rows(results, "bad"), PERPLEXITY) if "bad" in results.groups else []
    figure, axes = _panels(4.2 + sum(map(_height, bad)), 3, 2, [1.7, 1.7, 0.4 + sum(map(_height, bad))])
    copies = results.numbered("copies")
    for column, (name, title) in enumerate(((PERPLEXITY, PERPLEXITY), (KL_COMMON, "KL, nats"))):
        for axis, noun in ((axes[0][column], "domains"), (axes[1][column], "copies")):
            axis.set(xlabel=f"teachers ({noun})", ylabel=title)
            axis.grid(alpha=0.25)
        _draw_line(axes[0][column], _counted(results, "ours"), name, "ours", OURS, "D")
        _draw_line(axes[0][column], _counted(results, "uniform"), name, "uniform", OTHER, "o")
        _draw_line(axes[1][column], copies, name, "uniform", OTHER, "o")
        for axis, points in ((axes[0][column], _counted(results, "uniform")), (axes[1][column], copies)):
            axis.set_xticks(sorted(points))
    axes[0][0].set_title("less is better")
    axes[0][1].set_title("to the common target")
    axes[0][0].legend(frameon=False)
    _draw_dots(_merged(axes[2]), bad, "perplexity with and without a bad teacher")
    return figure


def _counted(results: Measured, rule: str) -> dict[int, MeasuredRow]:
    """Rows of the domains by their number of teachers; the last one has no number in its name."""
    rows = [*results.named(["one"]), *results.numbered(rule).values(), *results.named([rule])]
    return dict(enumerate(rows, 1))


def _figure3(results: Measured) -> "Figure":
    """Draw a panel for each task: answers that read no prompt, the task's specialist, students."""
    tasks = results.tasks
    if not tasks:
        return _table1(results)
    panels = {name: _scores(results, name, task) for name, task in tasks.items()}
    heights = [0.1 + sum(map(_height, rows)) for rows in panels.values()]
    figure, axes = _panels(sum(heights) + 0.5 * len(panels), len(panels), 1, heights)
    for line, (name, rows) in zip(axes, panels.items(), strict=True):
        _draw_dots(line[0], rows, f"{name}, {tasks[name].primary}, %", 100.0)
    return figure


def _scores(results: Measured, name: str, task: Task) -> list[Dot]:
    fixed = [Dot(f"{answers} answers", Spread(score, None, None)) for answers, score in task.baselines.items()]
    if task.specialist is not None and task.specialist in task.teachers:
        fixed.append(Dot(f"teacher {task.specialist}", task.teachers[task.specialist]))
    return [*fixed, *(Dot.of_row(row, row.score(name).spread) for row in results.rows)]


def _conditions(results: Measured) -> "Figure":
    titles = {
        "weighting": "perplexity, by stretch and sharpness of weights",
        "overconfident": "perplexity, one teacher over-confident",
        "switching": "perplexity, documents that change their domain",
    }
    lines = {group: _dots_of(group_rows(results, group), PERPLEXITY) for group in (*titles, "cache")}
    heights = [0.3 + sum(map(_height, of_group)) for of_group in lines.values()]
    figure, axes = _panels(3.2 + sum(heights), 1 + len(lines), 2, [2.0, *heights])
    _amounts(_merged(axes[0]), results)
    for line, (group, title) in zip(axes[1:], titles.items(), strict=False):
        _draw_dots(_merged(line), lines[group], title)
    _draw_dots(axes[-1][0], lines["cache"], "perplexity, by cache")
    calibration = _dots_of(group_rows(results, "cache"), ECE)
    _draw_dots(axes[-1][1], calibration, "calibration error (ECE), %", 100.0)
    axes[-1][1].tick_params(axis="y", labelleft=False)
    return figure


def _amounts(axis: "Axes", results: Measured) -> None:
    """Draw perplexity over the tokens of text that the student reads."""
    sources = len(results.domains)
    whole = results.student_tokens
    lines = (
        ("ce", "ce", "cross-entropy, as many steps", OTHER, "o"),
        ("passes", "ce", "cross-entropy, as many passes", ACCENT, "s"),
        ("ours", "ours", "ours, as many steps", OURS, "D"),
    )
    shown: set[int] = set()
    for name, with_all, label, colour, marker in lines:
        points = {tokens * sources: row for tokens, row in results.numbered(name).items()}
        if points and whole is not None:
            points |= {round(whole): row for row in results.named([with_all])}
        _draw_line(axis, dict(sorted(points.items())), PERPLEXITY, label, colour, marker)
        shown |= set(points)
    if shown:
        axis.set(xscale="log", yscale="log")
        axis.set_xticks(sorted(shown), [f"{tokens / 1000:,.0f}" for tokens in sorted(shown)])
        axis.yaxis.set_major_formatter("{x:,.0f}")
        axis.legend(frameon=False)
    axis.minorticks_off()
    axis.set(xlabel="text that the student reads, thousands of tokens", ylabel=PERPLEXITY_AXIS)
    axis.grid(alpha=0.25)
