"""Tables of the page: figures with their intervals beneath."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from collegium.base.terminal import duration, size
from collegium.base.visible import visible
from collegium.report.cells import UNKNOWN, Cell, Table, mean_cell, with_interval
from collegium.report.figures import FusionFigures, StudentFigures, StudentMeasured
from collegium.report.lineage import lineage_tables
from collegium.report.metric_names import PERPLEXITY
from collegium.report.records import RunRecord
from collegium.report.task_tables import task_tables


StudentFigure = Callable[[StudentFigures[Any]], Any]
"""Reads one figure, of a domain with its interval, or of the mean."""

TeachersFigure = Callable[[FusionFigures[Any]], Any]
"""Likewise."""


def figure_tables(run: RunRecord) -> Iterator[Table]:
    """Tables beneath the plots."""
    yield _student(run)
    if run.teachers:
        yield _losses(run)
        yield _against_teachers(run)
    yield from task_tables(run.evaluation)
    yield from _generation(run)


def detail_tables(run: RunRecord) -> Iterator[Table]:
    """Tables of what the run was made of, of its cost beside the plan, and of its text."""
    yield from lineage_tables(run.evaluation.lineage or {})
    yield from _cost(run)
    yield _held_out(run)


_STUDENT_FIGURES: list[tuple[str, int, StudentFigure]] = [
    (PERPLEXITY, 2, lambda figures: figures.perplexity),
    ("bits per byte", 4, lambda figures: figures.bits_per_byte),
    ("token accuracy", 4, lambda figures: figures.accuracy),
    ("calibration error (ECE)", 4, lambda figures: figures.ece),
    ("KL to the teachers' uniform mixture, nats: ranks students", 4, lambda figures: figures.kl_common),
    ("KL to its own target, nats: not for ranking", 4, lambda figures: figures.kl_own),
    ("same most probable token as that mixture", 4, lambda figures: figures.agreement),
]


def _student(run: RunRecord) -> Table:
    rows = [
        _student_row(run, run.student, label, figure, digits)
        for label, digits, figure in _STUDENT_FIGURES
        if any(figure(run.student.figures(domain)) is not None for domain in run.domains)
    ]
    caption = f"The student on held-out text; {run.evaluation.confidence:.0%} intervals over documents"
    return Table(caption, _columns(run), [_counts(run), *rows])


def _losses(run: RunRecord) -> Table:
    """Nats per token of everybody."""
    rows = []
    if run.evaluation.before is not None:
        rows.append(_student_row(run, run.before, "student before training", lambda figures: figures.nll, 3))
    rows.append(_student_row(run, run.student, "student", lambda figures: figures.nll, 3))
    for name in run.teachers:
        rows.append(_teachers_row(run, f"teacher {visible(name)}", _teacher_loss(name)))
    rows.append(_teachers_row(run, "teachers, fused", lambda figures: figures.fused_nll))
    return Table("Loss, nats per token", _columns(run), rows)


def _teacher_loss(name: str) -> TeachersFigure:
    return lambda figures: figures.teacher(name).nll


def _kl_to(name: str) -> StudentFigure:
    return lambda figures: figures.teacher(name).kl


def _against_teachers(run: RunRecord) -> Table:
    """Distance to each teacher, conflict, and who decided."""
    rows = [
        _student_row(run, run.student, f"KL from {visible(name)} to the student", _kl_to(name), 3)
        for name in run.teachers
    ]
    rows.append(_teachers_row(run, "conflict among the teachers", lambda figures: figures.conflict))
    rows.append(_teachers_row(run, "effective number of teachers", lambda figures: figures.effective_teachers))
    return Table("Student against each teacher, and the teachers among themselves, nats", _columns(run), rows)


def _student_row(
    run: RunRecord, measured: StudentMeasured, label: str, figure: StudentFigure, digits: int
) -> list[Cell]:
    cells = [with_interval(figure(measured.figures(domain)), digits) for domain in run.domains]
    return [Cell(label), *cells, mean_cell(figure(measured.mean), digits)]


def _teachers_row(run: RunRecord, label: str, figure: TeachersFigure) -> list[Cell]:
    measured = run.measured_teachers
    cells = [with_interval(figure(measured.figures(domain)), 3) for domain in run.domains]
    return [Cell(label), *cells, mean_cell(figure(measured.mean), 3)]


def _columns(run: RunRecord) -> list[str]:
    return ["", *map(visible, run.domains), "mean"]


def _counts(run: RunRecord) -> list[Cell]:
    """Documents and tokens of each domain, without which an interval cannot be judged."""
    measured = [run.evaluation.domains.get(domain) for domain in run.domains]
    cells = [
        Cell(UNKNOWN if d is None else f"{d.documents:,}", "" if d is None else f"{d.tokens:,} tokens")
        for d in measured
    ]
    return [Cell("held-out documents"), *cells, Cell("")]


def _generation(run: RunRecord) -> Iterator[Table]:
    section = run.evaluation.generation
    if section is None:
        return
    domains = section.domains
    rows = [
        [Cell(key.replace("_", " ")), *(with_interval(domain.figures.get(key), 2) for domain in domains.values())]
        for key in dict.fromkeys(key for domain in domains.values() for key in domain.figures)
    ]
    caption = f"Continuations of {section.new_tokens} tokens; the teacher is {visible(section.teacher)}"
    yield Table(caption, ["", *map(visible, domains)], rows)


def _cost(run: RunRecord) -> Iterator[Table]:
    cost = run.evaluation.cost
    if cost is None:
        return
    actual = cost.actual
    plan = cost.plan or {}
    rows = [[f"time: {visible(name)}", "", duration(value)] for name, value in actual.seconds.items()]
    rows.append(["time, all of it", *_both(plan.get("total_seconds"), sum(actual.seconds.values()), duration)])
    memories = {"memory": actual.memory_bytes, "device_memory": actual.device_memory_bytes}
    labels = {"memory": "memory, at most", "device_memory": "memory of the GPU, at most"}
    for key, value in memories.items():
        if value:
            rows.append([labels[key], *_both(plan.get(f"{key}_bytes"), value, size)])
    for name, value in actual.disk_bytes.items():
        rows.append([f"disk: {visible(name)}", *_both(plan.get("disk_bytes", {}).get(name), value, size)])
    caption = "What the pre-flight said it would take, and what it took"
    yield Table(caption, ["", "plan", "actual"], [[Cell(text) for text in row] for row in rows])


def _both(plan: float | None, actual: float, shown: Callable[[float], str]) -> list[str]:
    if not plan:
        return ["", shown(actual)]
    return [shown(plan), f"{shown(actual)} ({actual / plan - 1:+.0%})"]


def _held_out(run: RunRecord) -> Table:
    rows = [
        [Cell(key.replace("_", " ")), Cell(visible(str(value)))]
        for key, value in asdict(run.evaluation.held_out).items()
        if value is not None
    ]
    return Table("How held-out text was read", ["", ""], rows, is_text=True)
