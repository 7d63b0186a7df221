"""When it helps: questions of a user with teachers of their own, one small experiment for each.

The amount of text, the stretch and sharpness of weights by certainty, an overconfident teacher before and after
calibration, documents that change their domain midway, and the cost of a sparse cache. Learning rates are those
of table 1. No torch here.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from collegium.paper.experiment import Best, Experiment, Row, judge_recipe, source_sections, teacher_sections
from collegium.paper.specification import Specification
from collegium.paper.table1 import FITTED, OUR_WEIGHTING, distilled, in_words, ours


SHARPNESS = 1 / 3
"""Temperature of the overconfident teacher: its logits are multiplied by three."""

SWITCHING = "switching"


def conditions(specification: Specification) -> Experiment:
    """Build the experiment at a scale."""

    def rows(best: Best) -> Sequence[Row]:
        return [
            *_tuned(specification),
            *_weightings(specification),
            *_low_data(specification),
            *_overconfident(specification),
            *_switching(specification),
            *_caches(specification),
        ]

    experts = specification.experts
    judges = {
        "experts": judge_recipe(specification, experts),
        SWITCHING: judge_recipe(specification, experts, switching_sources()),
    }
    return Experiment("conditions", "When it helps", rows, experts, judges=judges)


def _tuned(specification: Specification) -> list[Row]:
    experts = specification.experts
    return [
        Row("ce", "Cross-entropy only", "text", {"method": "ce"}, headline=True),
        Row("ours", f"Ours ({in_words(OUR_WEIGHTING)})", "text", ours(specification, experts), headline=True),
        Row("uniform", "Uniform", "text", distilled(specification, experts, "uniform"), headline=True),
        Row("paper", "Paper's weights", "text", distilled(specification, experts, "paper"), headline=True),
    ]


def _low_data(specification: Specification) -> list[Row]:
    """Rows with less text and as many steps.

    Cross-entropy learns little text by heart, so it is also run for as many passes.
    """
    rows = []
    whole = specification.student_tokens
    for tokens in specification.low_data_tokens:
        sources = {"data.sources": source_sections(specification, tokens=tokens)}
        label = f"{tokens * len(specification.sources):,} tokens"
        text = {"method": "ce", **sources}
        rows.append(Row(f"ce_{tokens}", f"Cross-entropy, {label}", "text", text, like="ce"))
        if whole is not None:
            fewer = text | _steps(specification, tokens / whole)
            passes = f"Cross-entropy, {label}, as many passes"
            rows.append(Row(f"passes_{tokens}", passes, "text", fewer, like="ce"))
        taught = {**ours(specification, specification.experts), **sources}
        rows.append(Row(f"ours_{tokens}", f"Ours, {label}", "text", taught, like="ours"))
    return rows


def _steps(specification: Specification, share: float) -> dict[str, Any]:
    """Scale the number of steps, so that less text is read as often as all of it."""
    training = specification.recipe["training"]
    keys = [key for key in ("max_steps", "warmup_steps") if key in training]
    return {f"training.{key}": max(1, round(training[key] * share)) for key in keys}


def _weightings(specification: Specification) -> list[Row]:
    """Rows that rival our rule: entropies over other stretches, sharper or softer, or not calibrated."""
    stretches = ("sequence", "window:32", "token")
    taus = (0.25, 0.5, 1.0)
    calibrated = [*((stretch, tau) for stretch in stretches for tau in taus), ("sequence", 2.0)]
    rules = [*((*rule, FITTED) for rule in calibrated), ("sequence", 0.25, None)]
    rows: list[Row] = []
    for granularity, tau, teacher in rules:
        weighting = {"kind": "entropy", "granularity": granularity, "tau": tau}
        if teacher is not None and weighting == OUR_WEIGHTING:
            continue
        label = f"{in_words(weighting)}{'' if teacher is not None else ', not calibrated'}"
        changes = distilled(specification, specification.experts, weighting, teacher)
        rows.append(Row(f"weighting_{len(rows)}", label, "weighting", changes, like="ours"))
    return rows


def _overconfident(specification: Specification) -> list[Row]:
    """Rows whose first expert is made three times as certain, before and after calibration."""
    first, *rest = specification.experts
    others = teacher_sections(specification, rest)
    sharp = {"weight_temperature": SHARPNESS, "target_temperature": SHARPNESS}
    calibrated_weights = {"weight_temperature": "fit", "target_temperature": SHARPNESS}

    def changes(
        weighting: Any, sharpened: dict[str, Any], teacher: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        calibrated = [{**section, **(teacher or {})} for section in others]
        sections = [*teacher_sections(specification, [first], changes=sharpened), *calibrated]
        return {"teachers": sections, "objective": {"kd_weight": 1.0, "weighting": weighting}}

    rule = dict(OUR_WEIGHTING)
    group = "overconfident"
    return [
        Row("sharp_uniform", "Uniform", group, changes("uniform", sharp), like="uniform"),
        Row("sharp_paper", "Paper's weights", group, changes("paper", sharp), like="paper"),
        Row("sharp_raw", "Ours, not calibrated", group, changes(rule, sharp), like="ours"),
        Row(
            "sharp_fitted",
            "Ours, weights calibrated",
            group,
            changes(rule, calibrated_weights, FITTED),
            like="ours",
        ),
        Row(
            "sharp_both",
            "Ours, weights and its target calibrated",
            group,
            changes(rule, {"weight_temperature": "fit", "target_temperature": "fit"}, FITTED),
            like="ours",
        ),
    ]


def switching_sources() -> list[dict[str, Any]]:
    """Source of documents that change their domain midway; the experiment writes them before it begins."""
    return [{"name": SWITCHING, "kind": "files", "path": "OUTPUT/switching.jsonl"}]


def _switching(specification: Specification) -> list[Row]:
    rules: dict[str, Any] = {
        "uniform": "uniform",
        "token": {**OUR_WEIGHTING, "granularity": "token"},
        "window:32": {**OUR_WEIGHTING, "granularity": "window:32"},
        "causal:32": {**OUR_WEIGHTING, "granularity": "causal:32"},
        "document": {**OUR_WEIGHTING, "granularity": "sequence"},
    }
    tokens = specification.student_tokens
    sources = [
        {**s, **({} if tokens is None else {"max_tokens": tokens * len(specification.sources)})}
        for s in switching_sources()
    ]
    return [
        Row(
            f"switching_{name}",
            name,
            SWITCHING,
            {
                **distilled(specification, specification.experts, rule, None if name == "uniform" else FITTED),
                "data.sources": sources,
            },
            judge=SWITCHING,
            like="uniform" if name == "uniform" else "ours",
        )
        for name, rule in rules.items()
    ]


def _caches(specification: Specification) -> list[Row]:
    """Rows with the same uniform target from several kinds of cache; lists serve only their own temperature."""
    kinds: dict[str, dict[str, Any]] = {
        "top_k 16, renormalised": {"mode": "top_k", "max_kept": 16, "min_probability": 0, "tail": "renormalize"},
        "top_k 16, with tail": {"mode": "top_k", "max_kept": 16, "min_probability": 0, "tail": "bucket"},
        "50 draws": {"mode": "sampled", "num_samples": 50},
    }
    changes = distilled(specification, specification.experts, "uniform")
    return [
        Row(f"cache_{index}", name, "cache", {**changes, "cache": kind}, like="uniform")
        for index, (name, kind) in enumerate(kinds.items())
    ]
