"""Figure 2: one to five teachers, in three designs.

In `domains` each added teacher knows a domain that the others do not; in `copies` all come from one recipe and
differ by their seed; in `bad` a teacher of text that the student is not measured on joins the experts. Each
design has one fixed target for all its points. Learning rates are those of the same kind of row in table 1,
tuned there with all experts. No torch here.
"""

from collections.abc import Sequence
from typing import Any

from collegium.paper.experiment import Best, Experiment, Row, judge_recipe
from collegium.paper.specification import Specification
from collegium.paper.table1 import OUR_WEIGHTING, distilled, ours, targets


def figure2(specification: Specification) -> Experiment:
    """Build the figure at a scale."""

    def rows(best: Best) -> Sequence[Row]:
        return [*_tuned(specification), *_domains(specification), *_copies(specification), *_bad(specification)]

    judges = {"experts": judge_recipe(specification, specification.experts)}
    if specification.copies:
        judges["copies"] = judge_recipe(specification, specification.copies)
    return Experiment(
        "figure2",
        "Figure 2: number of teachers",
        rows,
        tuple(specification.teachers),
        judges=judges,
        targets=targets(specification.experts),
    )


def _tuned(specification: Specification) -> list[Row]:
    """Rows whose learning rates all others take: those of the table, by name and recipe."""
    experts = specification.experts
    group = "domains"
    label = f"{len(experts)} teachers"
    return [
        Row("ours", f"{label}, ours", group, ours(specification, experts), headline=True),
        Row("uniform", f"{label}, uniform", group, distilled(specification, experts, "uniform"), headline=True),
        Row("paper", f"{label}, paper", group, distilled(specification, experts, "paper"), headline=True),
    ]


def _domains(specification: Specification) -> list[Row]:
    rows = []
    for count in range(1, len(specification.experts)):
        names = specification.experts[:count]
        uniform = distilled(specification, names, "uniform")
        if count == 1:  # one teacher is one target, whatever the rule
            rows.append(_point("one", "1 teacher", "domains", uniform, "uniform"))
            continue
        rows += [
            _point(f"ours_{count}", f"{count} teachers, ours", "domains", ours(specification, names), "ours"),
            _point(f"uniform_{count}", f"{count} teachers, uniform", "domains", uniform, "uniform"),
        ]
    return rows


def _copies(specification: Specification) -> list[Row]:
    return [
        Row(
            f"copies_{count}",
            f"{count} {'copy' if count == 1 else 'copies'}, uniform",
            "copies",
            distilled(specification, specification.copies[:count], "uniform"),
            headline=True,
            judge="copies",
            like="uniform",
        )
        for count in range(1, len(specification.copies) + 1)
    ]


def _bad(specification: Specification) -> list[Row]:
    if specification.bad is None:
        return []
    names = [*specification.experts, specification.bad]
    raw = distilled(specification, names, dict(OUR_WEIGHTING))
    return [
        _point("bad_uniform", "uniform", "bad", distilled(specification, names, "uniform"), "uniform"),
        _point("bad_paper", "paper", "bad", distilled(specification, names, "paper"), "paper"),
        _point("bad_raw", "ours, not calibrated", "bad", raw, "ours"),
        _point("bad_ours", "ours", "bad", ours(specification, names), "ours"),
    ]


def _point(name: str, label: str, group: str, changes: dict[str, Any], like: str) -> Row:
    return Row(name, label, group, changes, headline=group == "domains", like=like)
