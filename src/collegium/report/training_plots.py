"""Figures over the steps of the training. Each returns whether the run has anything to be drawn."""

from typing import TYPE_CHECKING

from collegium.report.records import RunRecord
from collegium.report.series_style import colour, label, legend_above, stroke
from collegium.report.svg import INK, STUDENT, TEACHERS


if TYPE_CHECKING:
    from matplotlib.axes import Axes


def learning(axes: "Axes", run: RunRecord) -> bool:
    """Held-out loss where it was measured on the way, with teachers and their fusion as levels."""
    nll = run.course.get("eval/nll")
    if nll is None:
        return False
    steps, values = list(nll["step"]), list(nll["value"])
    if (before := run.mean("nll", "before")) is not None:
        steps, values = [0, *steps], [before, *values]
    if (after := run.mean("nll")) is not None and (last := _last_step(run)) is not None and last > steps[-1]:
        steps, values = [*steps, last], [*values, after]
    axes.plot(steps, values, color=STUDENT, marker="D", markersize=4, label="student")
    for index, name in enumerate(run.teachers):
        if (mean := run.mean(f"teacher/{name}/nll", "teachers")) is not None:
            axes.axhline(mean, color=colour(index), linestyle=stroke(index), linewidth=1, label=label(name))
    if (fused := run.mean("rule/fused/nll", "teachers")) is not None:
        axes.axhline(fused, color=INK, linewidth=1, label="teachers, fused")
    return _over_steps(axes, "nats per token")


def _last_step(run: RunRecord) -> int | None:
    return max((int(series["step"][-1]) for series in run.course.values()), default=None)


_TERMS = {
    "train/loss": ("all of it", INK, "-"),
    "train/kd_loss": ("divergence from the target", TEACHERS[0], "-"),
    "train/cross_entropy": ("cross-entropy of the text", TEACHERS[1], "--"),
    "train/target_entropy": ("entropy of the target", TEACHERS[2], "-."),
    "train/feature_loss": ("inner states", TEACHERS[3], ":"),
}


def terms(axes: "Axes", run: RunRecord) -> bool:
    """The loss and what it is made of."""
    drawn = False
    for name, (what, ink, line) in _TERMS.items():
        if (series := run.course.get(name)) is not None:
            axes.plot(series["step"], series["value"], color=ink, linestyle=line, linewidth=1.3, label=what)
            drawn = True
    return drawn and _over_steps(axes, "nats per token")


def weights(axes: "Axes", run: RunRecord) -> bool:
    """A line for each teacher."""
    drawn = False
    for index, name in enumerate(run.teachers):
        if (series := run.course.get(f"train/teacher/{name}/weight")) is not None:
            axes.plot(
                series["step"],
                series["value"],
                label=label(name),
                color=colour(index),
                linestyle=stroke(index),
                linewidth=1.3,
            )
            drawn = True
    axes.set_ylim(0, 1)
    return drawn and len(run.teachers) > 1 and _over_steps(axes, "weight (all add up to 1)")


def conflict(axes: "Axes", run: RunRecord) -> bool:
    """Divergence among the teachers."""
    series = run.course.get("train/conflict")
    if series is None or len(run.teachers) < 2:
        return False
    axes.plot(series["step"], series["value"], color=INK, linewidth=1.3, label="conflict")
    axes.set_ylim(bottom=0)
    return _over_steps(axes, "nats")


def _over_steps(axes: "Axes", unit: str) -> bool:
    axes.set(xlabel="step", ylabel=unit)
    axes.grid(axis="y")
    legend_above(axes)
    return True
