"""The results of an experiment as one JSON document: rows, differences with intervals, claims.

A difference between rows could be due to chance in two ways: the seeds and the documents. Both are tested:
Student's paired test over seeds, and a paired bootstrap over documents of the mean over seeds, stratified by
domain. The larger of the two p-values counts, after Holm's correction over the table.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from collegium.base.digest import json_digest
from collegium.base.finite import null_where_unknown
from collegium.evaluation.statistics import holm
from collegium.evaluation.stratified import stratified_difference
from collegium.evaluation.student_t import paired_t_test
from collegium.paper.experiment import Experiment, Plan, Row
from collegium.paper.numbers import BOOTSTRAP, CONFIDENCE, rounded, rounded_fields, seeds_summary
from collegium.paper.run_result import TEST, VALIDATION, RunResult, averaged
from collegium.paper.specification import Specification
from collegium.paper.task_scores import described, task_scores
from collegium.report.interval import Difference
from collegium.report.metric_names import (
    ACCURACY,
    AGREEMENT,
    BITS_PER_BYTE,
    ECE,
    ENTROPY_OWN,
    KL_COMMON,
    KL_EXPERT,
    KL_OWN,
    NLL,
    NLL_FILLED,
    PERPLEXITY,
    by_rule,
    by_teacher,
    of_teacher,
    rule_nll,
)
from collegium.report.perplexity import perplexity_of


FIGURES = (NLL, ACCURACY, KL_COMMON, KL_EXPERT, KL_OWN, ENTROPY_OWN, AGREEMENT)
"""Figures of a student on test documents; of the KLs only `kl/common` ranks students."""

SIGNIFICANT = 0.05

Read = Callable[[str], RunResult]


def collect(
    experiment: Experiment,
    specification: Specification,
    plan: Plan,
    read: Read,
    *,
    targets: Mapping[str, Any],
    made: Mapping[str, Any],
    specialists: Mapping[str, Any] | None = None,
    origins: Mapping[str, Mapping[str, Any]] | None = None,
    seconds: float,
) -> dict[str, Any]:
    """Collect the results of an experiment.

    Args:
        experiment: The experiment.
        specification: Its scale.
        plan: Its runs, all finished.
        read: Reads the result of a run by its key.
        targets: Sums over each document for teachers and fused targets.
        made: Mean figures of the teachers that were made.
        specialists: Scores of teachers on tasks, if there are any: see `collegium.paper.task_work`.
        origins: Sources as the specification names them, if local copies were read instead.
        seconds: Work of this call and earlier ones, added up over processes.
    """
    measured = {name: [read(run.key) for run in plan.measured(name)] for name in plan.rows}
    rows = [_row(plan, name, results) for name, results in measured.items()]
    baseline = measured[experiment.baseline]
    for row, difference in zip(rows, _differences(plan, measured, experiment.baseline), strict=True):
        row["against_baseline"] = difference
    results = {
        "experiment": experiment.name,
        "title": experiment.title,
        "scale": specification.name,
        "about": specification.about,
        "specification": _fingerprint(specification),
        "baseline": experiment.baseline,
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers")},
        "seconds": round(seconds),
        "student_tokens": (specification.student_tokens or 0) * len(specification.sources) or None,
        "text": _text(specification, origins or {}, baseline[0]),
        "teachers": {"made": made, "alone": _teachers_alone(targets), "fused": _fused(targets)},
        "rows": rows,
    }
    if specialists:
        results |= described(specialists, baseline[0])
        scores = task_scores(measured, experiment.baseline, specialists)
        for row in rows:
            row |= scores[row["name"]]
    finite: dict[str, Any] = null_where_unknown(results)
    return finite


def _fingerprint(specification: Specification) -> str:
    return json_digest(specification.model_dump(mode="json"))[:16]


def _text(
    specification: Specification, origins: Mapping[str, Mapping[str, Any]], result: RunResult
) -> dict[str, Any]:
    named = ("dataset", "config", "path")

    def source(domain: str) -> dict[str, Any]:
        both = {**origins.get(domain, {}), **specification.sources.get(domain, {})}
        return {key: both[key] for key in named if key in both}

    return {
        domain: {
            "source": source(domain),
            "licence": specification.licences.get(domain),
            "test_documents": len(result.sums(NLL, domain, TEST)[1]),
            "test_tokens": int(result.sums(NLL, domain, TEST)[1].sum()),
            "validation_documents": len(result.sums(NLL, domain, VALIDATION)[1]),
        }
        for domain in result.domains
    }


def _teachers_alone(sums: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    known = _figures(sums)
    filled = {name: of_teacher(name, NLL_FILLED) for name in by_teacher(known)}
    # Sums of earlier versions have the same under the loss's own name.
    return _losses(sums, {name: key if key in known else of_teacher(name, NLL) for name, key in filled.items()})


def _fused(sums: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    return _losses(sums, {name: rule_nll(name) for name in by_rule(_figures(sums))})


def _figures(sums: Mapping[str, Any]) -> Mapping[str, Any]:
    """Figures of the first domain, by metric; all domains have the same."""
    figures: Mapping[str, Any] = next(iter(sums.values()))["figures"] if sums else {}
    return figures


def _losses(sums: Mapping[str, Any], metrics: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """Losses by domain and their mean, by the names that `metrics` gives them."""
    result = RunResult({"tables": sums})
    found = {}
    for name, metric in metrics.items():
        row = result.by_domain(metric)
        mean = sum(row.values()) / len(row)
        found[name] = {
            **{domain: round(value, 4) for domain, value in row.items()},
            "mean": round(mean, 4),
            PERPLEXITY: round(perplexity_of(mean), 2),
        }
    return found


def _row(plan: Plan, name: str, results: Sequence[RunResult]) -> dict[str, Any]:
    row: Row = plan.rows[name]
    runs = plan.measured(name)
    figures = {
        figure: seeds_summary([result.mean(figure) for result in results])
        for figure in FIGURES
        if all(result.has(figure) for result in results)
    }
    figures[PERPLEXITY] = seeds_summary([perplexity_of(result.mean(NLL)) for result in results])
    on_validation = [perplexity_of(result.mean(NLL, VALIDATION)) for result in results]
    figures["validation_perplexity"] = seeds_summary(on_validation)
    figures[BITS_PER_BYTE] = seeds_summary([result.bits_per_byte for result in results])
    if all(result.ece is not None for result in results):
        figures[ECE] = seeds_summary([result.ece or 0.0 for result in results])
    written = [result.continuations for result in results if result.continuations is not None]
    if len(written) == len(results):
        figures |= {key: seeds_summary([w[key] for w in written]) for key in written[0]}
    return {
        "name": name,
        "label": row.label,
        "group": row.group,
        "headline": row.headline,
        "judge": row.judge,
        "learning_rate": plan.chosen[name],
        "learning_rate_of": row.like,
        "seeds": [run.seed for run in runs],
        "runs": [run.key for run in runs],
        "steps": results[0].steps,
        "seconds": round(sum(result.seconds for result in results) / len(results), 1),
        "figures": figures,
        "nll_by_domain": {
            domain: round(sum(r.by_domain(NLL)[domain] for r in results) / len(results), 4)
            for domain in results[0].domains
        },
    }


def _differences(
    plan: Plan, measured: Mapping[str, Sequence[RunResult]], baseline: str
) -> list[dict[str, Any] | None]:
    """Loss of each row minus the baseline's; None for the baseline and for rows measured on other text."""
    found: dict[str, dict[str, Difference]] = {}
    for name, results in measured.items():
        if name != baseline and plan.rows[name].judge == plan.rows[baseline].judge:
            found[name] = _difference(results, measured[baseline])
    worst = [_worst(tests) for tests in found.values()]
    adjusted = dict(zip(found, holm(worst).tolist(), strict=True))
    return [
        None
        if name not in found
        else {
            **{kind: rounded_fields(test) for kind, test in found[name].items()},
            "p_holm": rounded(adjusted[name]),
            "significant": adjusted[name] < SIGNIFICANT,
        }
        for name in measured
    ]


def _difference(results: Sequence[RunResult], baseline: Sequence[RunResult]) -> dict[str, Difference]:
    count = min(len(results), len(baseline))
    pairs = zip(results[:count], baseline[:count], strict=True)
    seeds = paired_t_test([a.mean(NLL) - b.mean(NLL) for a, b in pairs], confidence=CONFIDENCE)
    documents = stratified_difference(
        averaged(results[:count], NLL),
        averaged(baseline[:count], NLL),
        **BOOTSTRAP,
    )
    return {"over_seeds": seeds, "over_documents": documents}


def _worst(tests: Mapping[str, Difference]) -> float:
    values = [test.p_value if test.has_enough else math.nan for test in tests.values()]
    return max(values) if not any(math.isnan(value) for value in values) else math.nan
