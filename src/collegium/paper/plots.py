"""Figures of the results as SVG: the same JSON and the same matplotlib give the same bytes.

Colours are those of Okabe and Ito, text is readable at 400 pixels width, and the background is white on dark pages
too. Each file names in its metadata the JSON that it was drawn from.
"""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collegium.base.digest import json_digest
from collegium.base.terminal import say
from collegium.paper.markdown import group_rows
from collegium.paper.measured import Content, Measured, Spread, finite, spread_of


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


OURS, OTHER, PLAIN, ACCENT = "#D55E00", "#0072B2", "#555555", "#009E73"
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
PERPLEXITY = "perplexity (less is better)"


def fingerprint(results: Measured) -> str:
    """Of an experiment's JSON, as figures name it."""
    return json_digest(results.content)[:16]


def draw_all(results: Mapping[str, Measured], folder: Path) -> None:
    """Draw `folder/EXPERIMENT.svg` of each; says so if matplotlib is missing, since the page does not need it."""
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
    """The figure of an experiment."""
    drawings: Mapping[str, Callable[[Measured], Figure]] = {
        "table1": _table1,
        "figure2": _figure2,
        "figure3": _figure3,
        "conditions": _conditions,
    }
    return drawings[results.content["experiment"]](results)


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


def _table1(results: Measured) -> "Figure":
    lines: list[Content | str] = []
    for group in results.groups:
        lines += [group, *_sorted(results.in_group(group))]
    height = sum(_height(line) for line in lines)
    figure, axes = _panels(0.6 + height, 1, 1, [1])
    _dots(axes[0][0], lines, "perplexity", PERPLEXITY)
    return figure


def _sorted(rows: Sequence[Content]) -> list[Content]:
    return sorted(rows, key=lambda row: row["figures"]["perplexity"]["mean"])


def _height(line: Content | str) -> float:
    """Inches."""
    return 0.22 if isinstance(line, str) else 0.06 + 0.14 * len(_label(line).splitlines())


def _label(row: Content, width: int = 34) -> str:
    return textwrap.fill(row["label"], width)


def _dots(axis: "Axes", lines: Sequence[Content | str], figure: str, title: str, factor: float = 1.0) -> None:
    """One line a row: its mean and interval; ours in another colour, names of groups in bold."""
    if not lines:
        axis.set_visible(False)
        return
    places, place = [], 0.0
    for line in lines:
        place += _height(line) / 2
        places.append(place)
        place += _height(line) / 2
    for y, line in zip(places, lines, strict=True):
        spread = None if isinstance(line, str) else spread_of(line, figure)
        if spread is not None and not isinstance(line, str):
            _dot(axis, y, spread, factor, ours=_is_ours(line))
    axis.set_yticks(places, [line if isinstance(line, str) else _label(line) for line in lines])
    for text, line in zip(axis.get_yticklabels(), lines, strict=True):
        text.set_fontweight("bold" if isinstance(line, str) else "normal")
        text.set_color(OURS if not isinstance(line, str) and _is_ours(line) else "black")
    axis.set_ylim(place, 0.0)
    axis.set_xlabel(title)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x", alpha=0.25)


def _is_ours(row: Content) -> bool:
    return bool(row["name"] == "ours")


def _dot(axis: "Axes", y: float, spread: Spread, factor: float, *, ours: bool) -> None:
    colour, marker = (OURS, "D") if ours else (OTHER, "o")
    if spread.low is not None and spread.high is not None:
        axis.plot([factor * spread.low, factor * spread.high], [y, y], color=colour, linewidth=1.4)
    axis.plot([factor * spread.mean], [y], color=colour, marker=marker, markersize=4.5, linestyle="none")


def _line(axis: "Axes", points: Mapping[int, Content], figure: str, label: str, colour: str, marker: str) -> None:
    """A figure over a number, with intervals."""
    known = {x: spread for x, row in points.items() if (spread := spread_of(row, figure)) is not None}
    if not known:
        return
    means = [spread.mean for spread in known.values()]
    axis.plot(list(known), means, color=colour, marker=marker, markersize=4, linewidth=1.2, label=label)
    for x, spread in known.items():
        if spread.low is not None and spread.high is not None:
            axis.plot([x, x], [spread.low, spread.high], color=colour, linewidth=1.2)


def _figure2(results: Measured) -> "Figure":
    bad = group_rows(results, "bad") if "bad" in results.groups else []
    figure, axes = _panels(4.2 + sum(map(_height, bad)), 3, 2, [1.7, 1.7, 0.4 + sum(map(_height, bad))])
    copies = results.numbered("copies")
    for column, (name, title) in enumerate((("perplexity", "perplexity"), ("kl/common", "KL, nats"))):
        for axis, noun in ((axes[0][column], "domains"), (axes[1][column], "copies")):
            axis.set(xlabel=f"teachers ({noun})", ylabel=title)
            axis.grid(alpha=0.25)
        _line(axes[0][column], _counted(results, "ours"), name, "ours", OURS, "D")
        _line(axes[0][column], _counted(results, "uniform"), name, "uniform", OTHER, "o")
        _line(axes[1][column], copies, name, "uniform", OTHER, "o")
        for axis, points in ((axes[0][column], _counted(results, "uniform")), (axes[1][column], copies)):
            axis.set_xticks(sorted(points))
    axes[0][0].set_title("less is better")
    axes[0][1].set_title("to the common target")
    axes[0][0].legend(frameon=False)
    _dots(_merged(axes[2]), bad, "perplexity", "perplexity with and without a bad teacher")
    return figure


def _counted(results: Measured, rule: str) -> dict[int, Content]:
    """Rows of the domains by their number of teachers; the last one has no number in its name."""
    rows = [*results.named(["one"]), *results.numbered(rule).values(), *results.named([rule])]
    return dict(enumerate(rows, 1))


def _figure3(results: Measured) -> "Figure":
    """A panel for each task: answers that read no prompt, the task's specialist, students."""
    if not results.content.get("tasks"):
        return _table1(results)
    panels = {name: _scored(results, name, task) for name, task in results.content["tasks"].items()}
    heights = [0.1 + sum(map(_height, rows)) for rows in panels.values()]
    figure, axes = _panels(sum(heights) + 0.5 * len(panels), len(panels), 1, heights)
    for line, (name, rows) in zip(axes, panels.items(), strict=True):
        _dots(line[0], rows, "score", f"{name}, {results.content['tasks'][name]['primary']}, %", 100.0)
    return figure


def _scored(results: Measured, name: str, task: Content) -> list[Content]:
    """Rows of a task with its score as a figure."""
    unread = {"low": None, "high": None}
    fixed = {f"{answer} answers": {"value": score, **unread} for answer, score in task["baselines"].items()}
    specialist = task.get("specialist")
    if specialist in task["teachers"]:
        fixed[f"teacher {specialist}"] = task["teachers"][specialist]
    others = [
        {"name": label, "label": label, "figures": {"score": {**score, "mean": score["value"]}}}
        for label, score in fixed.items()
    ]
    students = [{**row, "figures": {"score": row["tasks"].get(name)}} for row in results.rows]
    return [*others, *students]


def _conditions(results: Measured) -> "Figure":
    titles = {
        "weighting": "perplexity, by stretch and sharpness of weights",
        "overconfident": "perplexity, one teacher over-confident",
        "switching": "perplexity, documents that change their domain",
    }
    rows = {group: group_rows(results, group) for group in (*titles, "cache")}
    heights = [0.3 + sum(map(_height, of_group)) for of_group in rows.values()]
    figure, axes = _panels(3.2 + sum(heights), 1 + len(rows), 2, [2.0, *heights])
    _amounts(_merged(axes[0]), results)
    for line, (group, title) in zip(axes[1:], titles.items(), strict=False):
        _dots(_merged(line), rows[group], "perplexity", title)
    _dots(axes[-1][0], rows["cache"], "perplexity", "perplexity, by cache")
    _dots(axes[-1][1], rows["cache"], "ece", "calibration error (ECE), %", 100.0)
    axes[-1][1].tick_params(axis="y", labelleft=False)
    return figure


def _amounts(axis: "Axes", results: Measured) -> None:
    """Perplexity over the tokens of text that the student reads."""
    sources, whole = len(results.content["text"]), finite(results.content.get("student_tokens"))
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
        _line(axis, dict(sorted(points.items())), "perplexity", label, colour, marker)
        shown |= set(points)
    if shown:
        axis.set(xscale="log", yscale="log")
        axis.set_xticks(sorted(shown), [f"{tokens / 1000:,.0f}" for tokens in sorted(shown)])
        axis.yaxis.set_major_formatter("{x:,.0f}")
        axis.legend(frameon=False)
    axis.minorticks_off()
    axis.set(xlabel="text that the student reads, thousands of tokens", ylabel=PERPLEXITY)
    axis.grid(alpha=0.25)
