"""Figures over the steps of the training. Each returns whether the run has anything to be drawn."""

from typing import TYPE_CHECKING

from collegium.report import metric_names as names
from collegium.report.records import RunRecord
from collegium.report.series_style import colour, legend_above, stroke, teacher_label
from collegium.report.svg import INK, STUDENT, TEACHERS


if TYPE_CHECKING:
    from matplotlib.axes import Axes


def learning(axes: "Axes", run: RunRecord) -> bool:
    """Held-out loss where it was measured on the way, with teachers and their fusion as levels."""
    nll = run.evaluation.curves.get(names.while_evaluating(names.NLL))
    if nll is None:
        return False
    points = list(zip(nll.step, nll.value, strict=True))
    if (before := run.before.mean.nll) is not None:
        points.insert(0, (0, before))
    if (after := run.student.mean.nll) is not None and (last := _last_step(run)) > nll.step[-1]:
        points.append((last, after))
    axes.plot(*zip(*points, strict=True), color=STUDENT, marker="D", markersize=4, label="student")
    teachers = run.measured_teachers.mean
    for index, name in enumerate(run.teachers):
        if (mean := teachers.teacher(name).nll) is not None:
            line = axes.axhline(mean, color=colour(index), linestyle=stroke(index), linewidth=1)
            line.set_label(teacher_label(name))
    if teachers.fused_nll is not None:
        axes.axhline(teachers.fused_nll, color=INK, linewidth=1, label="teachers, fused")
    return _over_steps(axes, "nats per token")


def _last_step(run: RunRecord) -> int:
    return max(curve.step[-1] for curve in run.evaluation.curves.values())


_TERMS = {
    names.LOSS: ("all of it", INK, "-"),
    names.KD_LOSS: ("divergence from the target", TEACHERS[0], "-"),
    names.CROSS_ENTROPY: ("cross-entropy of the text", TEACHERS[1], "--"),
    names.TARGET_ENTROPY: ("entropy of the target", TEACHERS[2], "-."),
    names.FEATURE_LOSS: ("inner states", TEACHERS[3], ":"),
}


def terms(axes: "Axes", run: RunRecord) -> bool:
    """The loss and what it is made of."""
    drawn = False
    for name, (what, ink, line) in _TERMS.items():
        if (curve := run.evaluation.curves.get(names.while_training(name))) is not None:
            axes.plot(curve.step, curve.value, color=ink, linestyle=line, linewidth=1.3, label=what)
            drawn = True
    return drawn and _over_steps(axes, "nats per token")


def weights(axes: "Axes", run: RunRecord) -> bool:
    """A line for each teacher."""
    drawn = False
    for index, name in enumerate(run.teachers):
        weight = names.while_training(names.of_teacher(name, names.WEIGHT))
        if (curve := run.evaluation.curves.get(weight)) is not None:
            axes.plot(
                curve.step,
                curve.value,
                label=teacher_label(name),
                color=colour(index),
                linestyle=stroke(index),
                linewidth=1.3,
            )
            drawn = True
    axes.set_ylim(0, 1)
    return drawn and len(run.teachers) > 1 and _over_steps(axes, "weight (all add up to 1)")


def conflict(axes: "Axes", run: RunRecord) -> bool:
    """Divergence among the teachers."""
    curve = run.evaluation.curves.get(names.while_training(names.CONFLICT))
    if curve is None or len(run.teachers) < 2:
        return False
    axes.plot(curve.step, curve.value, color=INK, linewidth=1.3, label="conflict")
    axes.set_ylim(bottom=0)
    return _over_steps(axes, "nats")


def _over_steps(axes: "Axes", unit: str) -> bool:
    axes.set(xlabel="step", ylabel=unit)
    axes.grid(axis="y")
    legend_above(axes)
    return True
