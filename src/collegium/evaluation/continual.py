"""Forgetting, learning and forward transfer of a student that continues earlier runs.

In nats per token on one held-out text for all students, so that every difference is paired by document.
The terms are those of continual learning (arXiv:1706.08840, section 2; arXiv:1801.10112, section 3), with
losses in place of accuracies: signs are chosen so that forgetting above 0 is bad and transfer above 0 is good.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from collegium.evaluation.language_modeling import DocumentSums
from collegium.evaluation.summary import compare
from collegium.report.evaluation import Continual, ContinualDomain, ContinualMean
from collegium.report.interval import Difference
from collegium.report.metric_names import NLL


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
) -> Continual:
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
    domains = {}
    for domain, table in final.items():
        losses = {run: tables[domain].mean(NLL) for run, tables in past.items()}
        if domain in old:
            best = min(losses, key=losses.__getitem__)
            domains[domain] = ContinualDomain(
                final=table.mean(NLL),
                before=losses[newest],
                best_past=losses[best],
                best_past_run=best,
                forgetting=before[best][domain],
            )
        else:
            domains[domain] = ContinualDomain(
                final=table.mean(NLL),
                before=losses[newest],
                reference=reference[domain].mean(NLL),
                learning=gained[domain],
                forward_transfer=transfer[domain],
            )
    return Continual(tuple(past), domains, _means(list(domains.values())))


def _means(domains: Sequence[ContinualDomain]) -> ContinualMean:
    return ContinualMean(
        forgetting=_mean([domain.forgetting for domain in domains]),
        learning=_mean([domain.learning for domain in domains]),
        forward_transfer=_mean([domain.forward_transfer for domain in domains]),
        final=sum(domain.final for domain in domains) / len(domains),
    )


def _mean(differences: Sequence[Difference | None]) -> float | None:
    """Over the domains that have one."""
    values = [difference.value for difference in differences if difference is not None]
    return sum(values) / len(values) if values else None
