"""Tables of results as Markdown that also reads well as text. No torch here."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from collegium.paper.claims import Claim
from collegium.paper.measured import Measured, MeasuredRow
from collegium.paper.spread import Spread, finite
from collegium.report.metric_names import ACCURACY, BITS_PER_BYTE, ECE, KL_COMMON, KL_EXPERT, KL_OWN, PERPLEXITY


NOTHING = "–"  # noqa: RUF001 (an en dash is what stands in an empty cell)

GROUPS = {
    "domains": "Each teacher knows a domain of its own",
    "copies": "Teachers that differ by their seed (own common target)",
    "bad": "With a bad teacher",
    "text": "Amount of text",
    "weighting": "Over what stretch, and how sharply, certainty weighs (calibrated if not said)",
    "overconfident": "One teacher three times as certain as it should be",
    "switching": "Documents that change their domain midway (own held-out text)",
    "cache": "Caches",
}
"""Headings of groups whose name is not one."""

REFERENCES: Mapping[tuple[str, str], Sequence[str]] = {
    ("figure2", "bad"): ("uniform", "paper", "ours"),
    ("conditions", "weighting"): ("uniform", "paper", "ours"),
    ("conditions", "overconfident"): ("uniform", "paper", "ours"),
    ("conditions", "cache"): ("uniform",),
}
"""Rows of other groups that a group is compared with: the same without what the group changes."""

BY_VALIDATION = ("weighting",)
"""Groups from which validation text chose one row, so that its figure is shown too."""

AS_THEY_ARE = {"bad": "no bad teacher", "overconfident": "none over-confident", "cache": "whole distributions"}
"""Remarks on those rows, by group, where their label does not say what is different."""


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        title: Heading.
        cell: Text in a row.
    """

    title: str
    cell: Callable[[MeasuredRow], str]


def number(value: float | None, digits: int) -> str:
    """Format a number; a dash where it is None, NaN or Inf."""
    value = finite(value)
    return NOTHING if value is None else f"{value:.{digits}f}"


def with_interval(spread: Spread | None, digits: int, sign: Literal["", "+"] = "") -> str:
    """Format as `mean [low, high]`, without an unknown interval; `+` shows the sign of positive ones."""
    if spread is None or finite(spread.mean) is None:
        return NOTHING
    form = f"{sign}.{digits}f"
    if spread.low is None or spread.high is None:
        return format(spread.mean, form)
    return f"{spread.mean:{form}} [{spread.low:{form}}, {spread.high:{form}}]"


def probability(value: float | None) -> str:
    """Format a p-value."""
    value = finite(value)
    return NOTHING if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _figure(name: str, digits: int, factor: float = 1.0) -> Callable[[MeasuredRow], str]:
    def cell(row: MeasuredRow) -> str:
        spread = row.spread(name)
        return NOTHING if spread is None else number(factor * spread.mean, digits)

    return cell


def _spread(name: str, digits: int) -> Callable[[MeasuredRow], str]:
    return lambda row: with_interval(row.spread(name), digits)


def _above_baseline(row: MeasuredRow) -> str:
    difference = row.against_baseline
    return NOTHING if difference is None else with_interval(difference.spread, 3, "+")


def _holm(row: MeasuredRow) -> str:
    difference = row.against_baseline
    return NOTHING if difference is None else probability(difference.p_holm)


LABEL = Column("student", lambda row: row.label)

QUALITY = (
    LABEL,
    Column(PERPLEXITY, _spread(PERPLEXITY, 2)),
    Column("bits per byte", _figure(BITS_PER_BYTE, 4)),
    Column("accuracy, %", _figure(ACCURACY, 2, 100.0)),
    Column("ECE, %", _figure(ECE, 2, 100.0)),
    Column("nats above ours", _above_baseline),
    Column("p (Holm)", _holm),
    Column("seeds", lambda row: str(len(row.seeds))),
)
"""Quality of a student."""

LEARNT = (
    LABEL,
    Column("KL to the common target", _spread(KL_COMMON, 4)),
    Column("KL to the domain's expert", _figure(KL_EXPERT, 4)),
    Column("KL to its own target (not for ranking)", _figure(KL_OWN, 4)),
    Column("learning rate", lambda row: f"{row.learning_rate:g}"),
)
"""Distance of a student from its teachers."""

VALIDATION = Column("perplexity on validation text", _figure("validation_perplexity", 2))

WRITTEN = (
    LABEL,
    Column("BLEU, text", _figure("bleu_reference", 2)),
    Column("chrF, text", _figure("chrf_reference", 1)),
    Column("BLEU, teachers", _figure("bleu_teacher", 2)),
    Column("chrF, teachers", _figure("chrf_teacher", 1)),
    Column("repeated 4-grams, %", _figure("repetition_4", 1, 100.0)),
)
"""Quality of what a student writes."""


def table(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table: first column to the left, the others to the right."""
    rule = ["---", *("---:" for _ in titles[1:])]
    return "\n".join("| " + " | ".join(_safe(cell) for cell in line) + " |" for line in [titles, rule, *lines])


def _safe(cell: str) -> str:
    return cell.replace("|", r"\|").replace("\n", " ")


def experiment_table(results: Measured, columns: Sequence[Column]) -> str:
    """All rows of an experiment, by group."""
    lines = []
    for group in results.groups:
        if len(results.groups) > 1:
            lines.append([f"**{GROUPS.get(group, group)}**", *("" for _ in columns[1:])])
        lines += [[column.cell(row) for column in columns] for row in results.in_group(group)]
    return table([column.title for column in columns], lines)


def group_rows(results: Measured, group: str) -> list[MeasuredRow]:
    """Rows of a group after those that they are to be compared with."""
    names = REFERENCES.get((results.experiment, group), ())
    remark = f", {AS_THEY_ARE[group]}" if group in AS_THEY_ARE else ""
    others = [replace(row, label=f"{row.label}{remark}") for row in results.named(names)]
    return [*others, *results.in_group(group)]


def group_table(results: Measured, group: str) -> str:
    """One group of an experiment, with rows to compare with: perplexity, calibration, KL, difference to ours."""
    columns = [c for c in QUALITY if c.title not in ("bits per byte", "accuracy, %")]
    columns.insert(2, LEARNT[1])
    if group in BY_VALIDATION:
        columns.insert(1, VALIDATION)
    columns = [c for c in columns if any(c.cell(row) != NOTHING for row in group_rows(results, group))]
    lines = [[column.cell(row) for column in columns] for row in group_rows(results, group)]
    return table([column.title for column in columns], lines)


VERDICTS = {True: "holds", False: "**does not hold**", None: "cannot be said"}


def claims_table(claims: Sequence[Claim]) -> str:
    """Claims beside what was measured, with the verdict in words."""
    lines = [[c.text, c.paper, _measured(c), VERDICTS[c.holds], c.why] for c in claims]
    rows = table(["claim", "paper", "measured", "verdict", "why"], lines).splitlines()
    rows[1] = "| --- | --- | --- | --- | --- |"
    return "\n".join(rows)


def _measured(claim: Claim) -> str:
    if claim.measured is None:
        return NOTHING
    factor, sign, unit = {"change": (100.0, "+", " %"), "share": (100.0, "", " %"), "score": (1.0, "", "")}[
        claim.kind
    ]
    mean, low, high = (
        None if value is None else f"{factor * value:{sign}.1f}{unit}"
        for value in (claim.measured, claim.low, claim.high)
    )
    return f"{mean}" if low is None or high is None else f"{mean} [{low}, {high}]"


def targets_table(targets: Mapping[str, Mapping[str, float]], domains: Sequence[str], noun: str) -> str:
    """Loss of teachers or fused targets themselves in each domain, and their perplexity over all."""
    lines = [
        [name, *(number(row.get(domain), 3) for domain in domains), number(row[PERPLEXITY], 2)]
        for name, row in targets.items()
    ]
    return table([noun, *(f"{domain}, nats" for domain in domains), PERPLEXITY], lines)
