"""Models, text and licences that a run was made from, as tables; `docs/model-card.md` explains each key."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from collegium.base.visible import visible
from collegium.report.cells import UNKNOWN, Cell, Table


Content = Mapping[str, Any]

_TEACHERS = ("teacher", "model", "revision", "licence", "parameters", "tokenizer", "mean weight")
_STUDENT = ("student", "model", "licence", "parameters", "of them trained", "layers kept")
_TEXT = ("source", "from", "licence", "training tokens", "held-out documents", "held-out tokens")


def lineage_tables(lineage: Content) -> Iterator[Table]:
    """Teachers, student and text."""
    if teachers := lineage.get("teachers"):
        yield Table("Teachers", _TEACHERS, [_teacher(teacher) for teacher in teachers], is_text=True)
    if student := lineage.get("student"):
        yield Table("Student", _STUDENT, [_student(student)], is_text=True)
    if sources := lineage.get("data"):
        yield Table("Text", _TEXT, [_source(source) for source in sources], is_text=True)


def _teacher(teacher: Content) -> list[Cell]:
    adapter = teacher.get("adapter")
    note = "" if adapter is None else f"with adapter {visible(adapter['model'])}"
    weight = teacher.get("weight") or {}
    return [
        Cell(visible(teacher["name"]), "read from a cache" if teacher.get("cached") else ""),
        Cell(visible(teacher["model"]), note),
        _text(teacher.get("revision")),
        _licence(teacher),
        _count(teacher.get("parameters")),
        _count(teacher.get("vocab_size")),
        Cell(UNKNOWN if weight.get("mean") is None else f"{weight['mean']:.1%}"),
    ]


def _student(student: Content) -> list[Cell]:
    kept: Sequence[int] | None = student.get("layers_kept")
    return [
        Cell(visible(student["kind"]).replace("_", " ")),
        _text(student.get("model")),
        _licence(student),
        _count(student.get("parameters")),
        _count(student.get("trained_parameters")),
        Cell(UNKNOWN if kept is None else ", ".join(map(str, kept))),
    ]


def _source(source: Content) -> list[Cell]:
    named = [source.get(key) for key in ("task", "dataset", "config", "split", "path")]
    return [
        Cell(visible(source["name"]), visible(source.get("language") or "")),
        Cell(visible(" ".join(str(part) for part in named if part)) or UNKNOWN),
        _licence(source),
        _count(source.get("train_tokens")),
        _count(source.get("held_out_documents")),
        _count(source.get("held_out_tokens")),
    ]


def _licence(content: Content) -> Cell:
    licence = content.get("licence")
    origin = content.get("licence_from")
    if licence is None:
        return Cell("not stated")
    return Cell(visible(licence), "" if origin is None else f"by the {visible(origin)}")


def _text(value: object) -> Cell:
    return Cell(UNKNOWN if value is None else visible(value))


def _count(value: int | None) -> Cell:
    return Cell(UNKNOWN if value is None else f"{value:,}")
