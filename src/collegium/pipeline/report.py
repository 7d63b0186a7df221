"""`collegium report RUN [RUN ...]`: one page; several runs are compared document by document."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from collegium import __version__
from collegium.base.durable import write_text
from collegium.base.errors import RecipeError
from collegium.base.progress import Phase
from collegium.base.visible import visible
from collegium.evaluation.statistics import holm, paired_bootstrap_difference
from collegium.report.cells import UNKNOWN, Cell, Table, mean_cell
from collegium.report.comparability import other_target, other_text, reasons, recipe_differences
from collegium.report.interval import Difference
from collegium.report.page import Comparison, render, summary_of_page
from collegium.report.records import RunRecord, read_run


def report(folders: Sequence[Path], output: Path | None = None) -> dict[str, Any]:
    """Write the page, and return what it says in short.

    Args:
        folders: Of finished runs; the first is what others are compared with.
        output: The page; `report.html` in the folder of the run, or here if there are several.

    Raises:
        DataError: a folder holds no finished run.
        RecipeError: a run is given twice, or matplotlib is missing.
    """
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise RecipeError("a run is given twice: give each once")
    with Phase("reading and comparing runs", total=len(folders), unit="runs") as phase:
        runs = [read_run(folder) for folder in phase.counted(folders)]
        comparison = _compared(runs) if len(runs) > 1 else None
    path = output or (Path("report.html") if len(runs) > 1 else folders[0] / "report.html")
    with Phase("drawing the page"):
        page = render(runs, version=__version__, comparison=comparison)
    write_text(path, page)
    return {"page": str(path), "bytes": len(page.encode()), **summary_of_page(runs, comparison)}


def _compared(runs: Sequence[RunRecord]) -> Comparison:
    """Perplexity by domain, and the difference from the first run on the same documents.

    What cannot be compared with the first run is left out, with the reason beneath the table.
    """
    first = runs[0]
    domains = list(dict.fromkeys(domain for run in runs for domain in run.domains))
    gaps = [_difference(run, first) for run in runs]
    p_values = holm([math.nan if run is first else _p_value(gap) for run, gap in zip(runs, gaps, strict=True)])
    rows = []
    for run, gap, p_value in zip(runs, gaps, p_values, strict=True):
        figures = [*_losses(run, first, domains), _target(run, first)]
        rows.append([Cell(run.name, str(run.folder)), *figures, *_gap_cells(run is first, gap, p_value)])
    columns = ["", *domains, "mean", "KL to the common target", f"nats above {first.name}", "p (Holm)"]
    documents = ", ".join(
        f"{name} {d.documents:,} documents of {d.tokens:,} tokens" for name, d in first.evaluation.domains.items()
    )
    note = (
        f"Perplexity by domain ({documents}). Differences are paired over the same held-out documents, with "
        f"{first.evaluation.confidence:.0%} intervals; p is adjusted for the number of runs."
    )
    others = runs[1:]
    remarks = [visible(line) for run in others for line in (*reasons(run, first), recipe_differences(run, first))]
    return Comparison(note, Table("All runs", columns, rows), remarks)


def _p_value(gap: Difference | None) -> float:
    """That of a difference on documents enough; NaN, which is no test, of others."""
    return gap.p_value if gap is not None and gap.has_enough else math.nan


def _losses(run: RunRecord, first: RunRecord, domains: Sequence[str]) -> Iterator[Cell]:
    """Perplexities; none where they are of other text than the first run's."""
    if run is not first and other_text(run, first):
        yield from [Cell(UNKNOWN)] * (len(domains) + 1)
        return
    measured = run.evaluation.domains
    for domain in domains:
        figure = measured[domain].figures.perplexity if domain in measured else None
        yield Cell(UNKNOWN if figure is None or not figure.is_known else figure.shown(1))
    yield mean_cell(run.evaluation.mean.perplexity, 1)


def _target(run: RunRecord, first: RunRecord) -> Cell:
    """The KL to the common target, if that is the first run's."""
    is_left_out = run is not first and other_target(run, first)
    return Cell(UNKNOWN) if is_left_out else mean_cell(run.evaluation.mean.kl_common, 3)


def _gap_cells(is_first: bool, gap: Difference | None, p_value: float) -> Iterator[Cell]:
    if is_first:
        yield from (Cell(UNKNOWN), Cell(UNKNOWN))
    elif gap is None:
        yield from (Cell("not comparable"), Cell(UNKNOWN))
    else:
        yield Cell(gap.shown(3, sign="+"), gap.ends(3, between=" to ", sign="+"))
        yield Cell(gap.too_few if not gap.has_enough else UNKNOWN if math.isnan(p_value) else f"{p_value:.3g}")


def _difference(run: RunRecord, first: RunRecord) -> Difference | None:
    """None where the runs were not measured on the same documents."""
    if other_text(run, first):
        return None
    ours = run.evaluation.documents
    theirs = first.evaluation.documents
    tokens = np.concatenate([np.array(ours[name].tokens, np.float64) for name in ours])
    losses = [np.concatenate([np.array(side[name].nll, np.float64) for name in ours]) for side in (ours, theirs)]
    counted = tokens > 0
    section = first.recipe.evaluation
    found = paired_bootstrap_difference(
        losses[0][counted],
        tokens[counted],
        losses[1][counted],
        tokens[counted],
        confidence=section.confidence,
        num_samples=section.bootstrap_samples,
        seed=first.recipe.seed,
    )
    return replace(found, documents=min(sum(n > 0 for n in ours[name].tokens) for name in ours))
