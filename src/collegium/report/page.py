"""One self-contained page of one run or several: HTML and SVG, no script, nothing to be fetched.

Everything that comes from recipes, models and data is escaped by the template, and what would not be seen is shown
as its code point. A page takes some seconds and a megabyte: most of it is the alternatives of single tokens.
"""

import importlib.resources
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from collegium.base.visible import visible
from collegium.recipe.file import dump_mapping
from collegium.report.card.public_recipe import public
from collegium.report.cells import Table
from collegium.report.evaluation_file import as_content
from collegium.report.metric_names import PERPLEXITY
from collegium.report.perplexity import shown_perplexity
from collegium.report.plots import Plot, draw_all
from collegium.report.records import RunRecord
from collegium.report.samples import Continuation
from collegium.report.series_style import colour_class
from collegium.report.tables import detail_tables, figure_tables
from collegium.report.tokens import PassageView, passages
from collegium.report.words import summary, verdict


@dataclass(frozen=True)
class Comparison:
    """Runs beside each other.

    Attributes:
        note: How to read it.
        table: Their figures, and differences from the first.
        remarks: What is left out of it, with the reason, and what the recipes have different.
    """

    note: str
    table: Table
    remarks: Sequence[str] = ()


@dataclass(frozen=True)
class _Named:
    name: str
    value: str = ""
    colour: str = ""


@dataclass(frozen=True)
class _Sample:
    domain: str
    prompt: str
    document: str
    written: Sequence["_Text"]


@dataclass(frozen=True)
class _Text:
    name: str
    text: str
    colour: str


@dataclass(frozen=True)
class _RunView:
    """A run as the template reads it."""

    id: str
    name: str
    summary: str
    facts: Sequence[_Named]
    verdict: Sequence[str]
    plots: Sequence[Plot]
    tables: Sequence[Table]
    teachers: Sequence[_Named]
    passages: Sequence[PassageView]
    continuations: Sequence[_Sample]
    details: Sequence[Table]
    notes: Sequence[str]
    recipe: str


def render(runs: Sequence[RunRecord], *, version: str, comparison: Comparison | None = None) -> str:
    """The page.

    Args:
        runs: One or more, the first being the one that others are compared with.
        version: Of collegium, for the footer.
        comparison: What is said of several.

    Raises:
        RecipeError: matplotlib is not installed.
    """
    views = [_view(run, f"r{index}-" if len(runs) > 1 else "") for index, run in enumerate(runs)]
    environment = Environment(autoescape=True, undefined=StrictUndefined, loader=FunctionLoader(_template))
    environment.filters["drawn"] = Markup  # of our own making, its labels escaped by matplotlib
    table = environment.get_template("table.html.j2")
    environment.filters["table"] = lambda content: Markup(table.render(content=content))
    return environment.get_template("page.html.j2").render(
        title=" and ".join(visible(run.name) for run in runs),
        css=Markup(_template("style.css")),
        contents=list(_contents(views, comparison)),
        runs=views,
        comparison=comparison,
        version=version,
        sources=visible(", ".join(run.folder.name for run in runs)),
    )


def _template(name: str) -> str:
    folder = importlib.resources.files("collegium.report") / "templates"
    return (folder / name).read_text(encoding="utf-8")


def _contents(views: Sequence[_RunView], comparison: Comparison | None) -> Iterator[dict[str, str]]:
    if comparison is not None:
        yield {"id": "runs", "title": "Runs beside each other"}
    for view in views:
        before = f"{view.name}: " if len(views) > 1 else ""
        shown = {
            "verdict": True,
            "figures": True,
            "tokens": bool(view.passages),
            "texts": bool(view.continuations),
            "tables": True,
            "details": True,
        }
        for part in (part for part, is_there in shown.items() if is_there):
            yield {"id": f"{view.id}{part}", "title": f"{before}{part}"}


def _view(run: RunRecord, prefix: str) -> _RunView:
    drawn = draw_all(run, prefix)
    return _RunView(
        id=prefix,
        name=visible(run.name),
        summary=visible(summary(run.recipe, run.evaluation)),
        facts=list(_facts(run)),
        verdict=[visible(line) for line in run.evaluation.verdict or verdict(run.evaluation)],
        plots=drawn,
        tables=list(figure_tables(run)),
        teachers=[_Named(visible(name), colour=colour_class(run.teachers, name)) for name in run.teachers],
        passages=list(passages(run, prefix)),
        continuations=list(_samples(run)),
        details=list(detail_tables(run)),
        notes=[visible(note) for note in _notes(run)],
        recipe=visible(dump_mapping(public(run.recipe.model_dump(mode="json")))),
    )


def _notes(run: RunRecord) -> Sequence[str]:
    """Notes of the pre-flight on its estimate."""
    plan = None if run.evaluation.cost is None else run.evaluation.cost.plan
    return () if plan is None else plan.get("notes", ())


def _facts(run: RunRecord) -> Iterator[_Named]:
    """The few figures that people want first."""
    mean = run.student.mean
    if mean.nll is not None:
        yield _Named(PERPLEXITY, shown_perplexity(mean.nll))
        if (before := run.before.mean.nll) is not None:
            yield _Named("before training", shown_perplexity(before))
    bits = [domain.figures.bits_per_byte for domain in run.evaluation.domains.values()]
    if known := [figure.value for figure in bits if figure is not None]:
        yield _Named("bits per byte", f"{sum(known) / len(known):.3f}")
    if mean.kl_common is not None:
        yield _Named("KL to the teachers", f"{mean.kl_common:.3f} nats")
    if mean.ece is not None:
        yield _Named("calibration error", f"{mean.ece:.1%}")


def _samples(run: RunRecord) -> Iterator[_Sample]:
    for domain, content in run.evaluation.continuations.items():
        written = list(_written(run, content))
        yield _Sample(visible(domain), visible(content.prompt), visible(content.document), written)


def _written(run: RunRecord, content: Continuation) -> Iterator[_Text]:
    for name, text in content.teachers.items():
        colour = colour_class(run.teachers, name) if name in run.teachers else ""
        yield _Text(f"teacher {visible(name)}", visible(text), colour)
    if content.fused is not None:
        yield _Text("teachers, fused", visible(content.fused), "")
    if content.before is not None:
        yield _Text("student before", visible(content.before), "")
    yield _Text("student", visible(content.student), "mine")


def summary_of_page(runs: Sequence[RunRecord], comparison: Comparison | None) -> dict[str, Any]:
    """Verdicts and comparison for `--json`; all other figures are in the runs' `evaluation.json`."""
    listed: dict[str, Any] = {
        run.name: {
            "folder": str(run.folder),
            "verdict": list(run.evaluation.verdict or verdict(run.evaluation)),
            "mean": as_content(run.evaluation)["mean"],
        }
        for run in runs
    }
    return {"runs": listed, "comparison": None if comparison is None else asdict(comparison)}
