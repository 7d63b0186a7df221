"""Plots of held-out text. Each function returns whether the run has anything to be drawn."""

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from collegium.report.figures import StudentMeasured
from collegium.report.interval import Interval
from collegium.report.perplexity import perplexity_of
from collegium.report.records import RunRecord
from collegium.report.series_style import (
    colour,
    label,
    legend_above,
    marker,
    plain_ticks,
    teacher_label,
    teacher_name,
)
from collegium.report.svg import INK, LINE, MUTED, PAPER, STUDENT


if TYPE_CHECKING:
    from matplotlib.axes import Axes


def losses(axes: "Axes", run: RunRecord) -> bool:
    """Perplexities of student, teachers and their fusion, a row a domain."""
    rows = list(reversed(run.domains))
    series: list[tuple[str, str, str, Callable[[str], Interval | None]]] = [
        ("student before", MUTED, "x", lambda domain: run.before.figures(domain).nll),
        *(
            (teacher_name(name), colour(index), marker(index), _teacher_loss(run, name))
            for index, name in enumerate(run.teachers)
        ),
        ("teachers, fused", INK, "|", lambda domain: run.measured_teachers.figures(domain).fused_nll),
        ("student", STUDENT, "D", lambda domain: run.student.figures(domain).nll),
    ]
    for who, ink, mark, loss in series:
        figures = [(row, loss(domain)) for row, domain in enumerate(rows)]
        found = [(row, figure) for row, figure in figures if figure is not None and _is_drawable(figure)]
        for place, (row, figure) in enumerate(found):
            _interval(axes, row, figure, ink, mark, label(who) if place == 0 else None)
    axes.set_xscale("log")
    axes.set_yticks(range(len(rows)), [label(domain) for domain in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel("perplexity (log scale)")
    plain_ticks(axes)
    axes.grid(axis="x")
    legend_above(axes)
    return True


def _teacher_loss(run: RunRecord, name: str) -> Callable[[str], Interval | None]:
    return lambda domain: run.measured_teachers.figures(domain).teacher(name).nll


def _is_drawable(nll: Interval) -> bool:
    """True where the perplexity is a number that an axis can have."""
    return all(math.isfinite(perplexity_of(end)) or math.isnan(end) for end in (nll.value, nll.low, nll.high))


def _interval(axes: "Axes", row: int, nll: Interval, ink: str, mark: str, name: str | None) -> None:
    low, high = (perplexity_of(end if math.isfinite(end) else nll.value) for end in (nll.low, nll.high))
    axes.plot([low, high], [row, row], color=ink, linewidth=1.5)
    size = 9 if mark in "|D" else 7
    axes.plot([perplexity_of(nll.value)], [row], mark, color=ink, markersize=size, label=name, linestyle="none")


def shares(axes: "Axes", run: RunRecord) -> bool:
    """Stacked bars, a domain each."""
    rows = list(reversed(run.domains))
    starts = [0.0] * len(rows)
    for index, name in enumerate(run.teachers):
        figures = [run.measured_teachers.figures(domain).teacher(name).weight for domain in rows]
        parts = [0.0 if figure is None else figure.value for figure in figures]
        hatch = ("", "//", "..", "xx")[index % 4]
        bars = axes.barh(range(len(rows)), parts, left=starts, color=colour(index), height=0.7)
        bars.set_label(teacher_label(name))
        for bar, share, start in zip(bars, parts, starts, strict=True):
            bar.set(hatch=hatch, edgecolor=LINE, linewidth=0.5)
            if share > 0.12:
                middle = (start + share / 2, bar.get_y() + bar.get_height() / 2)
                plate = {"facecolor": PAPER, "edgecolor": "none", "pad": 1.0}  # over the hatching
                axes.annotate(f"{share:.0%}", middle, ha="center", va="center", color=INK, fontsize=9, bbox=plate)
        starts = [start + share for start, share in zip(starts, parts, strict=True)]
    axes.set_yticks(range(len(rows)), [label(domain) for domain in rows])
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of the weight")
    legend_above(axes)
    return any(starts) and len(run.teachers) > 1


def reliability(axes: "Axes", run: RunRecord) -> bool:
    """Confidence against being right, before training and after."""
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=":")
    drawn = False
    for who, measured, ink, mark in (
        ("student before", run.before, MUTED, "x"),
        ("student", run.student, STUDENT, "D"),
    ):
        if points := list(_bins(measured)):
            axes.plot(*zip(*points, strict=True), marker=mark, color=ink, linewidth=1.3, label=who)
            drawn = True
    axes.set(
        xlim=(0, 1), ylim=(0, 1), xlabel="probability of its most probable token", ylabel="share that is right"
    )
    axes.legend(loc="upper left")
    return drawn


def _bins(measured: StudentMeasured, least: int = 30) -> Iterator[tuple[float, float]]:
    """Middle of each bin of confidence and how often its tokens were right, over all domains."""
    found = [d.confidence_bins for d in measured.domains.values() if d.confidence_bins is not None]
    if not found:
        return
    num_bins = len(found[0].tokens)
    for index in range(num_bins):
        tokens = sum(bins.tokens[index] for bins in found)
        if tokens >= least:
            gap = sum(bins.gaps[index] * bins.tokens[index] for bins in found) / tokens
            middle = (index + 0.5) / num_bins
            yield middle, min(1.0, max(0.0, middle - gap))


def certainty(axes: "Axes", run: RunRecord) -> bool:
    """Entropy of each teacher against its loss, both at its weight temperature."""
    points: list[float] = []
    for index, name in enumerate(run.teachers):
        figures = [run.measured_teachers.figures(domain).teacher(name) for domain in run.domains]
        places = [
            (teacher.entropy.value, teacher.weight_nll.value)
            for teacher in figures
            if teacher.entropy is not None and teacher.weight_nll is not None
        ]
        if places:
            style: dict[str, Any] = {"marker": marker(index), "color": colour(index), "linestyle": "none"}
            axes.plot(*zip(*places, strict=True), label=teacher_label(name), **style)
            points += [value for place in places for value in place]
    if not points:
        return False
    top = 1.05 * max(points)
    axes.plot([0, top], [0, top], color=MUTED, linewidth=1, linestyle=":")
    axes.set(xlim=(0, top), ylim=(0, top), xlabel="mean entropy, nats", ylabel="mean loss, nats")
    legend_above(axes)
    return True
