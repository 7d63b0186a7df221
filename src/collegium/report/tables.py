"""Tables of the page: figures with their intervals beneath."""

from collections.abc import Callable, Iterator, Sequence

from collegium.base.terminal import duration, size
from collegium.base.visible import visible
from collegium.report.cells import UNKNOWN, Cell, Table, with_interval
from collegium.report.lineage import lineage_tables
from collegium.report.records import Figure, RunRecord
from collegium.report.task_tables import task_tables


def figure_tables(run: RunRecord) -> Iterator[Table]:
    """What stands beneath the plots."""
    yield _student(run)
    if run.teachers:
        yield _losses(run)
        yield _against_teachers(run)
    yield from task_tables(run.evaluation)
    yield from _generation(run)


def detail_tables(run: RunRecord) -> Iterator[Table]:
    """What the run was made of, and its plan beside what it took."""
    yield from lineage_tables(run.evaluation.get("lineage") or {})
    yield from _cost(run)
    yield _plain(
        "How held-out text was read",
        [[key.replace("_", " "), str(value)] for key, value in run.evaluation.get("held_out", {}).items()],
    )


_STUDENT_FIGURES = {
    "perplexity": ("perplexity", 2),
    "bits_per_byte": ("bits per byte", 4),
    "accuracy": ("token accuracy", 4),
    "ece": ("calibration error (ECE)", 4),
    "kl/common": ("KL to the teachers' uniform mixture, nats: ranks students", 4),
    "kl/own": ("KL to its own target, nats: not for ranking", 4),
    "agreement": ("same most probable token as that mixture", 4),
}


def _student(run: RunRecord) -> Table:
    rows = []
    for name, (label, digits) in _STUDENT_FIGURES.items():
        if any(run.figure(domain, name) for domain in run.domains):
            cells = [with_interval(run.figure(domain, name), digits) for domain in run.domains]
            rows.append([Cell(label), *cells, _mean(run.mean(name), digits)])
    caption = f"The student on held-out text; {run.evaluation['confidence']:.0%} intervals over documents"
    return Table(caption, ["", *map(visible, run.domains), "mean"], rows)


def _losses(run: RunRecord) -> Table:
    """Nats per token of everybody."""

    def row(label: str, name: str, section: str | None) -> list[Cell]:
        cells = [with_interval(run.figure(domain, name, section), 3) for domain in run.domains]
        return [Cell(label), *cells, _mean(run.mean(name, section), 3)]

    rows = [row("student before training", "nll", "before")] if run.evaluation.get("before") else []
    rows.append(row("student", "nll", None))
    rows += [row(f"teacher {visible(name)}", f"teacher/{name}/nll", "teachers") for name in run.teachers]
    rows.append(row("teachers, fused", "rule/fused/nll", "teachers"))
    return Table("Loss, nats per token", ["", *map(visible, run.domains), "mean"], rows)


def _against_teachers(run: RunRecord) -> Table:
    """Distance to each teacher, conflict, and who decided."""
    sections: Sequence[tuple[str, str, str | None]] = [
        *((f"KL from {visible(name)} to the student", f"kl/{name}", None) for name in run.teachers),
        ("conflict among the teachers", "conflict", "teachers"),
        ("effective number of teachers", "effective_teachers", "teachers"),
    ]
    rows = [
        [
            Cell(label),
            *(with_interval(run.figure(domain, name, section), 3) for domain in run.domains),
            _mean(run.mean(name, section), 3),
        ]
        for label, name, section in sections
    ]
    return Table("Student against each teacher, and the teachers among themselves, nats", _columns(run), rows)


def _columns(run: RunRecord) -> list[str]:
    return ["", *map(visible, run.domains), "mean"]


def _generation(run: RunRecord) -> Iterator[Table]:
    section = run.evaluation.get("generation")
    if not section:
        return
    domains = section["domains"]
    figures = list(dict.fromkeys(key for domain in domains.values() for key in domain["figures"]))
    rows = [
        [
            Cell(key.replace("_", " ")),
            *(with_interval(Figure.of(domain["figures"].get(key)), 2) for domain in domains.values()),
        ]
        for key in figures
    ]
    caption = f"Continuations of {section['new_tokens']} tokens; the teacher is {visible(section['teacher'])}"
    yield Table(caption, ["", *map(visible, domains)], rows)


def _cost(run: RunRecord) -> Iterator[Table]:
    cost = run.evaluation.get("cost")
    if not cost:
        return
    actual, plan = cost["actual"], cost.get("plan") or {}
    rows = [[f"time: {visible(name)}", "", duration(value)] for name, value in actual["seconds"].items()]
    took = sum(actual["seconds"].values())
    rows.append(["time, all of it", *_both(plan.get("total_seconds"), took, duration)])
    for key, label in (("memory_bytes", "memory, at most"), ("device_memory_bytes", "memory of the GPU, at most")):
        if actual.get(key):
            rows.append([label, *_both(plan.get(key), actual[key], size)])
    for name, value in actual["disk_bytes"].items():
        rows.append([f"disk: {visible(name)}", *_both(plan.get("disk_bytes", {}).get(name), value, size)])
    caption = "What the pre-flight said it would take, and what it took"
    yield Table(caption, ["", "plan", "actual"], [[Cell(text) for text in row] for row in rows])


def _both(plan: float | None, actual: float, shown: Callable[[float], str]) -> list[str]:
    if not plan:
        return ["", shown(actual)]
    return [shown(plan), f"{shown(actual)} ({actual / plan - 1:+.0%})"]


def _plain(caption: str, rows: Sequence[Sequence[str]]) -> Table:
    return Table(caption, ["", ""], [[Cell(visible(text)) for text in row] for row in rows], is_text=True)


def _mean(value: float | None, digits: int) -> Cell:
    return Cell(UNKNOWN if value is None else f"{value:.{digits}f}")
