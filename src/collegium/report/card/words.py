"""Numbers, models and objectives of a lineage in words, as Markdown that is safe to render."""

import math
from collections.abc import Mapping
from typing import Any

from collegium.report.card.markup import escaped


DIVERGENCES = {
    "forward_kl": "the KL divergence of the student from the teachers' fused distribution",
    "reverse_kl": "the reverse KL divergence of the student from the teachers' fused distribution",
}
FUSIONS = {
    "mixture": "the weighted mean of the teachers' probabilities",
    "geometric": "the normalised weighted mean of the teachers' log-probabilities",
}
STARTS = {
    "pretrained": "the weights of {model}",
    "config": "random weights, in the shape of {model}",
    "layer_drop": "some of the layers of {model}",
    "pruned": "the most important parts of {model}, cut out in width and depth",
    "continued": "the student of an earlier run, {model}",
}


def count(number: int | None) -> str:
    """A count for people; `not known` for None."""
    return "not known" if number is None else f"{number:,}"


def read_text(training: Mapping[str, Any]) -> str:
    """Steps, and tokens if they were counted, which versions of before did not do."""
    steps = f"{count(training['steps'])} steps"
    return steps if training["tokens"] is None else f"{steps} and {count(training['tokens'])} tokens"


def decimal(value: float | None, digits: int = 3) -> str:
    """A figure for people."""
    return "not known" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def share(weights: Mapping[str, float] | None, when: str) -> str:
    """A teacher's weight over the run or at its end."""
    return "not logged" if weights is None else f"{weights[when]:.3f}"


def model(about: Mapping[str, Any]) -> str:
    """A model's reference, with its revision and adapter."""
    text = escaped(about["model"])
    if about["revision"]:
        text += f" at {escaped(about['revision'][:12])}"
    adapter = about.get("adapter")
    return text if adapter is None else f"{text} with adapter {model(adapter)}"


def start(student: Mapping[str, Any]) -> str:
    """The student's first weights in words."""
    text = STARTS.get(student["kind"], "{model}").replace("{model}", model(student))
    kept = student["layers_kept"]
    return text if not kept else f"{text} ({len(kept)} layers: {', '.join(map(str, kept))})"


def weight(value: Any) -> str:
    """A weight of the loss: a number, or a schedule."""
    if isinstance(value, int | float):
        return f"{value:g}"
    if isinstance(value, Mapping) and {"initial", "final"} <= value.keys():
        return f"{value['initial']:g} to {value['final']:g} over the run ({escaped(str(value.get('shape')))})"
    return escaped(str(value))


def objective(training: Mapping[str, Any]) -> str:
    """The loss in words, with the weights of its parts."""
    kd = training["kd_weight"]
    ce = training["ce_weight"]
    if ce is None:
        ce = round(1 - kd, 6) if isinstance(kd, int | float) else "1 - the weight of distillation"
    parts = []
    if kd != 0:
        kind = training["divergence"]["kind"]
        divergence = DIVERGENCES.get(kind, f"the divergence {escaped(kind)} from the teachers' distribution")
        parts.append(f"{weight(kd)} x {divergence} ({FUSIONS[training['fusion']]})")
    if ce != 0:
        parts.append(f"{weight(ce)} x the cross-entropy of the text")
    if training["features"]:
        kinds = ", ".join(escaped(str(term["kind"])) for term in training["features"])
        parts.append(f"{weight(training['feature_weight'])} x losses on inner states ({kinds})")
    if training["cross_tokenizer"]:
        kinds = ", ".join(escaped(str(term["kind"])) for term in training["cross_tokenizer"])
        parts.append(f"{weight(training['cross_tokenizer_weight'])} x terms across vocabularies ({kinds})")
    return "; plus ".join(parts) or "nothing"


def weighting(training: Mapping[str, Any]) -> str:
    """By which rule teachers count."""
    rule = training["weighting"]
    if rule["kind"] == "uniform":
        return "All teachers count alike."
    if rule["kind"] == "entropy":
        return (
            "The more certain a teacher is of the next token, the more it counts: exp(-entropy / tau) with tau "
            f"{rule['tau']:g} nats, over stretches `{rule['granularity']}`, normalised over the teachers."
        )
    return f"Teachers are weighed by the rule `{rule['kind']}`."
