"""The loss: where the names of divergences, fusions and weightings meet their functions."""

from collections.abc import Mapping, Sequence
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel

from collegium.build.divergence import build_divergence
from collegium.contracts import Capability, Teacher
from collegium.errors import DataError, TeacherError
from collegium.functional.chunked import KdTarget
from collegium.functional.fusion import Fusion, geometric_logprobs, mixture_logprobs
from collegium.functional.weighting import Weighting
from collegium.objective import FeatureTerm, Objective
from collegium.objective_sections import ObjectiveSection, WeightingSection
from collegium.pretrained import causal_lm_of
from collegium.recipe import Recipe
from collegium.teachers.cached import CachedTeacher
from collegium.teachers.local import LocalTeacher


FUSIONS: Mapping[str, Fusion] = {"mixture": mixture_logprobs, "geometric": geometric_logprobs}


def build_objective(
    recipe: Recipe, student: PreTrainedModel | PeftModel, teachers: Sequence[Teacher]
) -> Objective:
    """The loss, after comparing what it needs with what the teachers provide.

    Raises:
        TeacherError: a teacher does not provide what a term needs.
    """
    section = recipe.objective
    feature = build_feature_term(section, student, teachers) if section.feature_weight > 0 else None
    objective = Objective(
        [teacher.name for teacher in teachers],
        kd_weight=section.kd_weight,
        target=build_target(section),
        weighting=build_weighting(section.weighting, [teacher.name for teacher in teachers]),
        feature_weight=section.feature_weight,
        feature=feature,
        label_smoothing=section.label_smoothing,
        max_invalid_fraction=section.max_invalid_fraction,
        chunk_size=recipe.training.chunk_size,
    )
    for teacher in teachers:
        missing = objective.need - teacher.provides
        if missing:
            raise TeacherError(
                f"teacher {teacher.name!r} provides {_listed(teacher.provides)}, but the objective needs "
                f"{_listed(missing)} too: {_MENDS[max(missing)]}, or run the teacher (cached: false)"
            )
    return objective


_MENDS = {
    Capability.TOP_K: "draws serve the forward KL to a mixture only; set objective.divergence and fusion so",
    Capability.HIDDEN_STATES: "set feature_weight to 0",
    Capability.SAMPLES: "set kd_weight to 0",
}


def _listed(capabilities: frozenset[Any]) -> str:
    return ", ".join(sorted(capabilities)) or "nothing"


def build_target(section: ObjectiveSection) -> KdTarget:
    """Divergence, fusion and temperature."""
    return KdTarget(
        divergence=build_divergence(section.divergence),
        fusion=FUSIONS[section.fusion],
        temperature=section.kd_temperature,
        # The gradient of a total variation falls with the temperature itself, not with its square.
        scale_by_squared_temperature=section.scale_by_squared_temperature
        and section.divergence.kind != "total_variation",
    )


def build_weighting(section: WeightingSection, names: Sequence[str]) -> Weighting:
    """How much each teacher counts."""
    values = None if section.values is None else tuple(section.values[name] for name in names)
    return Weighting(section.kind, section.granularity, section.tau, values)


def build_feature_term(
    section: ObjectiveSection, student: PreTrainedModel | PeftModel, teachers: Sequence[Teacher]
) -> FeatureTerm:
    """The feature term with projections that fit these models."""
    text = causal_lm_of(student).config.get_text_config()
    importance = section.feature.importance
    local = [teacher for teacher in teachers if isinstance(teacher, LocalTeacher | CachedTeacher)]
    if len(local) != len(teachers):
        raise TeacherError("feature_weight needs the hidden states of local teachers; set it to 0")
    try:
        term = FeatureTerm(
            (text.hidden_size, text.num_hidden_layers),
            [(teacher.hidden_size, teacher.num_layers) for teacher in local],
            layer_map=section.feature.layer_map,
            importance=None if importance is None else [importance[t.name] for t in teachers],
            layer_norm=section.feature.layer_norm,
            balance=section.feature.balance,
        )
    except ValueError as error:
        raise DataError(f"objective.feature: {error}") from error
    for teacher, pairs in zip(local, term.pairs, strict=True):
        asked = {layer for _, layer in pairs}
        if isinstance(teacher, CachedTeacher) and not asked <= set(teacher.known_layers):
            raise TeacherError(
                f"teacher {teacher.name!r}: objective.feature matches its layers {sorted(asked)}, its cache knows "
                f"{list(teacher.known_layers) or 'none'}: set objective.feature.layer_map to last and make the "
                "cache with cache.mode: hidden_states, or run the teacher (cached: false)"
            )
    return term
