"""What a student forgot of earlier runs, what it gained, and what they had given it beforehand.

In nats per token on one held-out text for all students, so that every difference is paired by document.
The terms are those of continual learning (arXiv:1706.08840, section 2; arXiv:1801.10112, section 3), with
losses in place of accuracies: signs are chosen so that forgetting above 0 is bad and transfer above 0 is good.
"""

from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any

from collegium.evaluation.language_modeling import DocumentSums
from collegium.evaluation.summary import compare


Tables = Mapping[str, DocumentSums]


def continual_figures(
    final: Tables,
    past: Mapping[str, Tables],
    learned: Mapping[str, Collection[str]],
    reference: Tables,
    *,
    confidence: float,
    num_samples: int,
    seed: int,
) -> dict[str, Any]:
    """Forgetting, learning and forward transfer, by domain.

    A domain is old if a past run learned it, and new if only this one did.

    - `forgetting` of an old domain: loss of the final student minus the least loss of a past one. Its
      interval knows nothing of how the best was chosen.
    - `learning` of a new domain: loss of the newest past student minus that of the final one.
    - `forward_transfer` of a new domain: loss of the reference minus that of the newest past student, before
      either saw the domain.

    Args:
        final: The student that is measured.
        past: Students of earlier runs by folder, the newest first.
        learned: Domains that each of them was trained on.
        reference: The student as it was before the first of the runs.
        confidence: Of the intervals.
        num_samples: Resamples.
        seed: Of the resamples.
    """
    options: dict[str, Any] = {"confidence": confidence, "num_samples": num_samples, "seed": seed}
    newest = next(iter(past))
    old = {domain for domains in learned.values() for domain in domains}
    before = {run: compare(final, tables, **options) for run, tables in past.items()}
    transfer = compare(reference, past[newest], **options)
    gained = compare(past[newest], final, **options)
    domains: dict[str, Any] = {}
    for domain, table in final.items():
        figures: dict[str, Any] = {"final": table.mean("nll"), "before": past[newest][domain].mean("nll")}
        if domain in old:
            best = min(past, key=lambda run: past[run][domain].mean("nll"))
            figures |= {"best_past": past[best][domain].mean("nll"), "best_past_run": best}
            figures["forgetting"] = asdict(before[best][domain])
        else:
            figures["reference"] = reference[domain].mean("nll")
            figures["learning"] = asdict(gained[domain])
            figures["forward_transfer"] = asdict(transfer[domain])
        domains[domain] = figures
    means = {name: _mean(domains, name) for name in ("forgetting", "learning", "forward_transfer")}
    means["final"] = sum(figures["final"] for figures in domains.values()) / len(domains)
    return {"runs": list(past), "domains": domains, "mean": means}


def _mean(domains: Mapping[str, Mapping[str, Any]], name: str) -> float | None:
    """Over the domains that have it."""
    values = [figures[name]["value"] for figures in domains.values() if name in figures]
    return sum(values) / len(values) if values else None
