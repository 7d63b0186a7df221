"""`collegium report RUN [RUN ...]`: one page; several runs are compared document by document."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from collegium import __version__
from collegium.base.durable import write_text
from collegium.base.errors import RecipeError
from collegium.base.progress import Phase
from collegium.evaluation.statistics import holm, paired_bootstrap_difference
from collegium.report.cells import UNKNOWN, Cell, Table, mean_cell
from collegium.report.evaluation import DocumentLosses
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
    """Perplexity by domain, and the difference from the first run on the same documents."""
    first = runs[0]
    domains = list(dict.fromkeys(domain for run in runs for domain in run.domains))
    gaps = [_difference(run, first) for run in runs]
    p_values = holm(
        [math.nan if gap is None or run is first else gap.p_value for run, gap in zip(runs, gaps, strict=True)]
    )
    rows = []
    for run, gap, p_value in zip(runs, gaps, p_values, strict=True):
        measured = run.evaluation.domains
        perplexities = [measured[domain].figures.perplexity if domain in measured else None for domain in domains]
        cells = [Cell(UNKNOWN if figure is None else figure.shown(1)) for figure in perplexities]
        mean = run.evaluation.mean
        cells += [mean_cell(mean.perplexity, 1), mean_cell(mean.kl_common, 3)]
        rows.append([Cell(run.name, str(run.folder)), *cells, *_gap_cells(run is first, gap, p_value)])
    columns = ["", *domains, "mean", "KL to the common target", f"nats above {first.name}", "p (Holm)"]
    note = (
        f"Perplexity by domain. Differences are paired over the same held-out documents, with "
        f"{first.evaluation.confidence:.0%} intervals; p is adjusted for the number of runs."
    )
    return Comparison(note, Table("All runs", columns, rows))


def _gap_cells(is_first: bool, gap: Difference | None, p_value: float) -> Iterator[Cell]:
    if is_first:
        yield from (Cell(UNKNOWN), Cell(UNKNOWN))
    elif gap is None:
        yield from (Cell("other held-out text"), Cell(UNKNOWN))
    else:
        yield Cell(gap.shown(3, sign="+"), gap.ends(3, between=" to ", sign="+"))
        yield Cell(UNKNOWN if math.isnan(p_value) else f"{p_value:.3g}")


def _difference(run: RunRecord, first: RunRecord) -> Difference | None:
    """None where the runs were not measured on the same documents."""
    ours = run.evaluation.documents
    theirs = first.evaluation.documents
    if not ours or _tokens(ours) != _tokens(theirs):
        return None
    tokens = np.concatenate([np.array(ours[name].tokens, np.float64) for name in ours])
    losses = [np.concatenate([np.array(side[name].nll, np.float64) for name in ours]) for side in (ours, theirs)]
    counted = tokens > 0
    section = first.recipe.evaluation
    return paired_bootstrap_difference(
        losses[0][counted],
        tokens[counted],
        losses[1][counted],
        tokens[counted],
        confidence=section.confidence,
        num_samples=section.bootstrap_samples,
        seed=first.recipe.seed,
    )


def _tokens(documents: Mapping[str, DocumentLosses]) -> dict[str, tuple[int, ...]]:
    return {name: domain.tokens for name, domain in documents.items()}
