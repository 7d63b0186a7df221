"""Parts of an objective as they are given in Python: by the names that recipes use, or as functions.

A name is the kind with the values that a recipe's has if nothing else is said; `tests/training/test_named.py`
holds both together. What is neither a known name nor such a part is refused when the objective is made.
"""

from collections.abc import Callable, Mapping
from functools import partial

from collegium.base.schedule import Schedule, largest, smallest
from collegium.base.suggestion import did_you_mean
from collegium.fused.chunked import KdTarget
from collegium.fused.teacher_stats import TeacherWeighting
from collegium.losses.blended_divergences import adaptive_kl, skew_forward_kl, skew_reverse_kl, todi
from collegium.losses.divergences import (
    Divergence,
    PositionalDivergence,
    alpha_beta,
    forward_kl,
    generalized_jsd,
    reverse_kl,
    total_variation,
)
from collegium.losses.fusion import Fusion, geometric_logprobs, mixture_logprobs
from collegium.losses.joint_weighting import JointWeighting
from collegium.losses.min_norm import MinNormWeighting
from collegium.losses.positional_divergences import Blend, Decoupled, SkewPair
from collegium.losses.weighting import Weighting
from collegium.training.terms.divergence_schedules import DivergenceSchedule, OwnTextSchedule, TaidSchedule


FUSIONS: Mapping[str, Fusion] = {"mixture": mixture_logprobs, "geometric": geometric_logprobs}

DIVERGENCES: Mapping[str, Divergence | PositionalDivergence] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jsd": partial(generalized_jsd, beta=0.5),
    "total_variation": total_variation,
    "skew_forward_kl": partial(skew_forward_kl, alpha=0.1),
    "skew_reverse_kl": partial(skew_reverse_kl, alpha=0.1),
    "adaptive_kl": partial(adaptive_kl, mu=0.5),
    "alpha_beta": partial(alpha_beta, alpha=0.2, beta=0.7),
    "todi": todi,
    "distillm2": SkewPair(0.1),
    "taid": Blend(),
    "decoupled": Decoupled(),
}

SCHEDULES: Mapping[str, Callable[[], DivergenceSchedule]] = {
    "taid": lambda: TaidSchedule(start=0.4, end=1.0, alpha=5e-4, beta=0.99),
    "distillm2": OwnTextSchedule,
}
"""Schedules of the divergences that have one."""

WEIGHTINGS: Mapping[str, TeacherWeighting] = {
    "paper": Weighting("entropy", "token", 1.0),
    "uniform": Weighting("uniform"),
    "entropy": Weighting("entropy"),
    "inverse_entropy": Weighting("inverse_entropy"),
    "most_certain": Weighting("most_certain"),
    "mt_bert": Weighting("mt_bert"),
    "min_ce": Weighting("min_ce"),
    "avg_ce": Weighting("avg_ce"),
    "bayes": Weighting("bayes"),
    "ebkd": JointWeighting("ebkd", "window:32"),
    "ca_mkd": JointWeighting("ca_mkd", "window:32"),
    "min_norm": MinNormWeighting("window:32"),
}

_NEED_MORE = {
    "static": "Weighting('static', values=(...)), a weight for each teacher",
    "domain": "Weighting('domain', routes=(...)), the place of the teacher of each domain",
    "router": "Objective(router=Router(...))",
}


def target_of(target: KdTarget | str | None, fusion: Fusion | str | None) -> KdTarget:
    """The target of a name and a fusion, or as it is given.

    Raises:
        ValueError: there is no such divergence or fusion, or a fusion is given twice.
    """
    if isinstance(target, KdTarget):
        if fusion is not None:
            raise ValueError(
                "fusion is a part of the KdTarget that is given: leave it out, or give a name as target"
            )
        return target
    name = "forward_kl" if target is None else target
    if not isinstance(name, str) or name not in DIVERGENCES:
        raise ValueError(f"target is {name!r}: give a KdTarget or a name; {did_you_mean(name, DIVERGENCES)}")
    if isinstance(fusion, str) and fusion not in FUSIONS:
        raise ValueError(f"fusion is {fusion!r}: give a function or a name; {did_you_mean(fusion, FUSIONS)}")
    fuse = FUSIONS[fusion or "mixture"] if fusion is None or isinstance(fusion, str) else fusion
    # The gradient of a total variation falls with the temperature itself, not with its square.
    return KdTarget(DIVERGENCES[name], fuse, scale_by_squared_temperature=name != "total_variation")


def schedule_of(target: KdTarget | str | None, schedule: DivergenceSchedule | None) -> DivergenceSchedule | None:
    """The schedule that is given, or that of a named divergence."""
    if schedule is None and isinstance(target, str) and target in SCHEDULES:
        return SCHEDULES[target]()
    return schedule


def weighting_of(weighting: TeacherWeighting | str | None) -> TeacherWeighting:
    """The weighting of a name, or as it is given.

    Raises:
        ValueError: there is none of this name, or it needs more than a name.
    """
    if weighting is None:
        return Weighting()
    if isinstance(weighting, str):
        if weighting in _NEED_MORE:
            raise ValueError(f"weighting {weighting!r} needs more than its name: give {_NEED_MORE[weighting]}")
        if weighting not in WEIGHTINGS:
            raise ValueError(f"there is no weighting {weighting!r}; {did_you_mean(weighting, WEIGHTINGS)}")
        return WEIGHTINGS[weighting]
    if not callable(weighting) and not hasattr(weighting, "weights"):
        raise ValueError(f"weighting is a {type(weighting).__name__}: give a Weighting, or the name of one")
    return weighting


def require_weights(
    kd_weight: float | Schedule, ce_weight: float | Schedule | None, feature_weight: float | Schedule
) -> None:
    """See that weights of terms are numbers or schedules, and go together.

    Raises:
        ValueError: one is not in its range.
    """
    for name, weight in {"kd_weight": kd_weight, "ce_weight": ce_weight, "feature_weight": feature_weight}.items():
        if weight is None and name == "ce_weight":
            continue
        if not isinstance(weight, int | float | Schedule):
            raise ValueError(f"{name} is {weight!r}: give a number or a Schedule")
        if not smallest(weight) >= 0 or largest(weight) == float("inf"):
            raise ValueError(f"{name} is {weight}; it must be 0 or more")
    if ce_weight is None and largest(kd_weight) > 1:
        raise ValueError(
            f"kd_weight is {kd_weight}; above 1 there is nothing left for the text: give ce_weight too"
        )
