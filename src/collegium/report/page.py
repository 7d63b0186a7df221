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
from collegium.report.plots import Plot, draw_all
from collegium.report.records import RunRecord
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
    """

    note: str
    table: Table


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
        parts = [("verdict", "verdict"), ("figures", "figures")]
        parts += [("tokens", "tokens")] * bool(view.passages) + [("texts", "texts")] * bool(view.continuations)
        for part, title in [*parts, ("tables", "tables"), ("details", "details")]:
            yield {"id": f"{view.id}{part}", "title": f"{before}{title}"}


def _view(run: RunRecord, prefix: str) -> _RunView:
    drawn = draw_all(run, prefix)
    return _RunView(
        id=prefix,
        name=visible(run.name),
        summary=visible(summary(run.recipe, run.evaluation)),
        facts=list(_facts(run)),
        verdict=[visible(line) for line in run.evaluation.get("verdict") or verdict(run.evaluation)],
        plots=drawn,
        tables=list(figure_tables(run)),
        teachers=[_Named(visible(name), colour=colour_class(run.teachers, name)) for name in run.teachers],
        passages=list(passages(run, prefix)),
        continuations=list(_samples(run)),
        details=list(detail_tables(run)),
        notes=[visible(note) for note in ((run.evaluation.get("cost") or {}).get("plan") or {}).get("notes", ())],
        recipe=visible(dump_mapping(public(run.recipe.model_dump(mode="json")))),
    )


def _facts(run: RunRecord) -> Iterator[_Named]:
    """The few figures that people look for first."""
    if (after := run.mean("perplexity")) is not None:
        before = run.mean("perplexity", "before")
        yield _Named("perplexity", f"{after:.1f}")
        if before is not None:
            yield _Named("before training", f"{before:.1f}")
    bits = [figure.value for domain in run.domains if (figure := run.figure(domain, "bits_per_byte")) is not None]
    if bits:
        yield _Named("bits per byte", f"{sum(bits) / len(bits):.3f}")
    if (kl := run.mean("kl/common")) is not None:
        yield _Named("KL to the teachers", f"{kl:.3f} nats")
    if (ece := run.mean("ece")) is not None:
        yield _Named("calibration error", f"{ece:.1%}")


def _samples(run: RunRecord) -> Iterator[_Sample]:
    for domain, content in (run.evaluation.get("continuations") or {}).items():
        written = [
            _Text(visible(name), visible(text), _colour_of_author(run, name))
            for name, text in content["written"].items()
        ]
        yield _Sample(visible(domain), visible(content["prompt"]), visible(content["document"]), written)


def _colour_of_author(run: RunRecord, name: str) -> str:
    teacher = name.removeprefix("teacher ")
    if teacher != name and teacher in run.teachers:
        return colour_class(run.teachers, teacher)
    return "mine" if name == "student" else ""


def summary_of_page(runs: Sequence[RunRecord], comparison: Comparison | None) -> dict[str, Any]:
    """What `--json` prints: verdicts and comparison; all other figures are in the runs' `evaluation.json`."""
    told: dict[str, Any] = {
        run.name: {
            "folder": str(run.folder),
            "verdict": list(run.evaluation.get("verdict") or verdict(run.evaluation)),
            "mean": dict(run.evaluation["mean"]),
        }
        for run in runs
    }
    return {"runs": told, "comparison": None if comparison is None else asdict(comparison)}
