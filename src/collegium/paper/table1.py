"""Table 1: ways to train one student, on the same text, from the same weights, with the same budget.

The paper compares its method with TinyBERT, MobileBERT, MiniLM and DKD. As published these learn from one
teacher, here the best single one on validation text; they are run again with all teachers, uniformly mixed.
Beside them stand the steps from cross-entropy to the product's default rule, and routes by the true domain of
each text, which no user has. No torch here.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from collegium.paper.experiment import Best, Experiment, Row, judge_recipe, source_sections, teacher_sections
from collegium.paper.specification import Specification


PUBLISHED: Mapping[str, str] = {
    "tinybert": "TinyBERT",
    "mobilebert": "MobileBERT",
    "minilm": "MiniLM",
    "dkd": "DKD",
}
"""Published methods that the paper compares its own with."""

OUR_WEIGHTING: Mapping[str, Any] = {"kind": "entropy", "granularity": "window:32", "tau": 0.5}
"""Entropies averaged over 32 tokens, tau 0.5: among the rules in `conditions`, validation text chose this one."""

FITTED: Mapping[str, Any] = {"weight_temperature": "fit"}
"""Entropies that set weights are taken at a temperature fitted on a mixture of all domains of training text."""


def table1(specification: Specification) -> Experiment:
    """Build the table at a scale."""
    experts = specification.experts

    def rows(best: Best) -> Sequence[Row]:
        return [
            *_ladder(specification),
            *_singles(specification),
            *_baselines(specification, best),
            *_equal_compute(specification),
        ]

    return Experiment(
        "table1",
        "Table 1: methods",
        rows,
        experts,
        judges={"experts": judge_recipe(specification, experts)},
        targets=targets(experts),
    )


def targets(experts: Sequence[str]) -> dict[str, Any]:
    """Weightings whose fused targets are measured themselves."""
    return {
        "uniform": "uniform",
        "paper": "paper",
        "ours": dict(OUR_WEIGHTING),
        "oracle": oracle(experts),
    }


def oracle(experts: Sequence[str]) -> dict[str, Any]:
    """Weighting that routes each domain to the expert of its name."""
    return {"kind": "domain", "domains": {name: name for name in experts}}


def distilled(
    specification: Specification, names: Sequence[str], weighting: Any, teacher: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Build the changes of a row that learns from these teachers alone, without the text's labels.

    Args:
        specification: Teachers to choose from.
        names: Names of the row's teachers.
        weighting: Value of `objective.weighting`.
        teacher: Changes in each teacher's section.
    """
    return {
        "teachers": teacher_sections(specification, names, changes=teacher),
        "objective": {"kd_weight": 1.0, "weighting": weighting},
    }


def in_words(weighting: Mapping[str, Any]) -> str:
    """Describe the stretch and the sharpness of an entropy rule, for tables."""
    kind, _, size = weighting["granularity"].partition(":")
    stretch = "document" if kind == "sequence" else kind
    return f"{stretch}{f' of {size}' if size else ''}, tau {weighting['tau']:g}"


def ours(specification: Specification, names: Sequence[str]) -> dict[str, Any]:
    """Build the changes of the row with the recommended rule."""
    return distilled(specification, names, dict(OUR_WEIGHTING), FITTED)


def _ladder(specification: Specification) -> list[Row]:
    experts = specification.experts
    both = {**FITTED, "target_temperature": "fit"}
    paper = distilled(specification, experts, "paper")
    half = ours(specification, experts)
    half["objective"] = {**half["objective"], "kd_weight": 0.5}
    group = "Several teachers"
    return [
        Row("ce", "Cross-entropy only", "Baselines", {"method": "ce"}, headline=True),
        Row("uniform", "Uniform", group, distilled(specification, experts, "uniform"), headline=True),
        Row(
            "uniform_calibrated",
            "Uniform, targets calibrated",
            group,
            distilled(specification, experts, "uniform", both),
        ),
        Row("paper", "Paper's weights (token, tau 1)", group, paper, headline=True),
        Row(
            "paper_half",
            "Paper's weights, half cross-entropy",
            group,
            {**paper, "objective": {**paper["objective"], "kd_weight": 0.5}},
        ),
        Row(
            "ours",
            f"Ours ({in_words(OUR_WEIGHTING)}, weights calibrated)",
            group,
            ours(specification, experts),
            headline=True,
        ),
        Row("ours_half", "Ours, half cross-entropy", group, half),
        Row("oracle", "Routes by true domain", group, distilled(specification, experts, oracle(experts))),
    ]


def _equal_compute(specification: Specification) -> list[Row]:
    """Rows of cross-entropy with the time that teachers cost: more passes over the same text, or more text."""
    steps = specification.recipe["training"]["max_steps"]
    factor = specification.compute_factor
    longer = {"method": "ce", "training.max_steps": round(steps * factor)}
    tokens = None if specification.student_tokens is None else round(specification.student_tokens * factor)
    more_text = {**longer, "data.sources": source_sections(specification, tokens=tokens)}
    group = "Equal compute"
    return [
        Row("ce_longer", f"Cross-entropy, {factor:g} times the steps", group, longer, like="ce"),
        Row("ce_more_text", f"Cross-entropy, {factor:g} times the text", group, more_text, like="ce"),
    ]


def single(name: str) -> str:
    """Return the name of the row of one teacher."""
    return f"single_{name}"


def _singles(specification: Specification) -> list[Row]:
    return [
        Row(
            single(name),
            f"Teacher {name} alone",
            "Single teachers",
            distilled(specification, [name], "uniform"),
            num_seeds=1,  # the best one is chosen, and has all seeds in a row of its own
        )
        for name in specification.experts
    ]


def _baselines(specification: Specification, best: Best) -> list[Row]:
    """Rows of published methods with the best single teacher, once that is known, and with all."""
    rows = [
        Row(
            f"{method}_all",
            f"{PUBLISHED[method]}, all teachers",
            "Published methods, all teachers",
            _published(specification, method, specification.experts),
        )
        for method in specification.published_with_all
    ]
    chosen = best([single(name) for name in specification.experts])
    if chosen is None:
        return rows
    teacher = chosen.removeprefix("single_")
    group = "Baselines"
    rows += [
        Row(method, f"{label}, best single teacher", group, _published(specification, method, [teacher]), True)
        for method, label in PUBLISHED.items()
    ]
    alone = distilled(specification, [teacher], "uniform")
    return [*rows, Row("best_single", "Best single teacher (validation)", group, alone, headline=True)]


def _published(specification: Specification, method: str, names: Sequence[str]) -> dict[str, Any]:
    return {"method": method, "teachers": teacher_sections(specification, names, cached=False)}
