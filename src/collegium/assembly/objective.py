"""The loss: where the names of divergences, fusions and weightings meet their functions."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from peft import PeftModel
from transformers import PreTrainedModel

from collegium.assembly.cross_tokenizer import build_cross_tokenizer
from collegium.assembly.divergence import build_divergence, build_divergence_schedule
from collegium.assembly.features import build_features
from collegium.base.errors import RecipeError, TeacherError
from collegium.evaluation.language_modeling import Rule
from collegium.fused.chunked import KdTarget
from collegium.losses.joint_weighting import JointWeighting
from collegium.losses.min_norm import MinNormWeighting
from collegium.losses.weighting import Weighting
from collegium.models.pretrained import causal_lm_of
from collegium.recipe.recipe import Recipe
from collegium.recipe.sections.objective import DynamicSection, ObjectiveSection, WeightingSection
from collegium.recipe.sections.schedule import schedule_of
from collegium.signals.contracts import Capability, Teacher
from collegium.training.named import FUSIONS
from collegium.training.objective import Objective, term_names
from collegium.training.terms.balancing import Balancer, GradientFree, UncertaintyWeighting
from collegium.training.terms.dynamic import DynamicDistillation
from collegium.training.terms.routing import Router


if TYPE_CHECKING:
    from collegium.assembly.run import Run


def build_objective(run: "Run") -> Objective:
    """Build the loss, after comparing what it needs with what the teachers provide.

    Raises:
        TeacherError: a teacher does not provide what a term needs.
    """
    section = run.recipe.objective
    names = [teacher.name for teacher in run.teachers]
    features = build_features(run)
    cross_tokenizer = build_cross_tokenizer(section, run.student, run.teachers)
    objective = Objective(
        names,
        kd_weight=schedule_of(section.kd_weight),
        ce_weight=None if section.ce_weight is None else schedule_of(section.ce_weight),
        target=build_target(section),
        weighting=build_weighting(section.weighting, names, run.recipe.domains),
        router=build_router(section.weighting, run.student, run.teachers),
        feature_weight=schedule_of(section.feature_weight),
        features=features,
        cross_tokenizer=cross_tokenizer,
        balancer=build_balancer(section, len(features), len(section.cross_tokenizer)),
        dynamic=build_dynamic(section.dynamic),
        divergence_schedule=build_divergence_schedule(section.divergence),
        label_smoothing=section.label_smoothing,
        max_invalid_fraction=section.max_invalid_fraction,
        chunk_size=run.recipe.training.chunk_size,
    )
    for teacher in run.teachers:
        missing = objective.need - teacher.provides
        if missing:
            raise TeacherError(
                f"teacher {teacher.name!r} provides {_listed(teacher.provides)}, but the objective needs "
                f"{_listed(missing)} too: {_FIXES[max(missing)]}, or run the teacher (cached: false)"
            )
    return objective


_FIXES = {
    Capability.TOP_K: "draws serve the forward KL to a mixture only; set objective.divergence and fusion so",
    Capability.HIDDEN_STATES: "set feature_weight to 0",
    Capability.ATTENTION: "choose an objective.feature without attention, or set feature_weight to 0",
    Capability.FULL_VOCAB: "use kind: alm in objective.cross_tokenizer, or cache.mode: hidden_states",
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
        conflict_limit=section.conflict_limit,
    )


BALANCERS: Mapping[str, type[Balancer]] = {"gradient_free": GradientFree, "uncertainty": UncertaintyWeighting}


def build_balancer(section: ObjectiveSection, num_features: int, num_cross_tokenizer: int) -> Balancer | None:
    """Build what weighs terms against one another; None if nothing does."""
    names = term_names(num_features, num_cross_tokenizer)
    return None if section.balance == "fixed" else BALANCERS[section.balance](names)


def build_dynamic(section: DynamicSection | None) -> DynamicDistillation | None:
    """Dynamic KD, if the recipe asks for it."""
    if section is None:
        return None
    return DynamicDistillation(section.adoption, section.selection, section.selected_share, section.objective)


def build_router(
    section: WeightingSection, student: PreTrainedModel | PeftModel, teachers: Sequence[Teacher]
) -> Router | None:
    """A router, if teachers are weighed by one."""
    if section.kind != "router":
        return None
    assert section.loss_weight is not None, "the section fills it in"
    width = causal_lm_of(student).config.get_text_config().hidden_size
    return Router(width, len(teachers), tau=section.tau, loss_weight=section.loss_weight)


def build_weighting(
    section: WeightingSection, names: Sequence[str], domains: Sequence[str]
) -> Weighting | JointWeighting | MinNormWeighting:
    """Build what says how much each teacher counts, from the names of teachers and of domains in their order."""
    if section.kind == "ebkd" or section.kind == "ca_mkd":
        return JointWeighting(section.kind, section.granularity)
    if section.kind == "min_norm":
        assert section.max_weight is not None, "the section fills it in"
        return MinNormWeighting(section.granularity, section.max_weight)
    if section.kind == "router":
        return Weighting("uniform")  # where it has learnt nothing yet, and where there is no student
    values = section.values
    routes = section.domains
    weighting = Weighting(
        section.kind,
        section.granularity,
        section.tau,
        values=None if values is None else tuple(values[name] for name in names),
        routes=None if routes is None else tuple(names.index(routes[domain]) for domain in domains),
    )
    return weighting if section.decay is None else replace(weighting, decay=section.decay)


def build_rule(recipe: Recipe) -> Rule:
    """The rule by which the recipe fuses teachers, to be measured without a student.

    Raises:
        RecipeError: the weights follow the student.
    """
    names = [teacher.name for teacher in recipe.teachers]
    weighting = build_weighting(recipe.objective.weighting, names, recipe.domains)
    if isinstance(weighting, MinNormWeighting):
        raise RecipeError(
            "objective.weighting: the weights of min_norm follow the student, and there is none here; "
            "judge the teachers with objective.weighting=uniform"
        )
    return Rule(weighting, build_target(recipe.objective).fusion)


def own_rule(recipe: Recipe) -> Rule | None:
    """The rule whose target the recipe's student learns.

    None where no teacher's distribution is read, and where the weights follow the student (`min_norm`, `router`,
    Dynamic KD): such a target is not known without the student of that step.
    """
    objective = recipe.objective
    follows = objective.weighting.kind in ("min_norm", "router")
    follows = follows or (objective.dynamic is not None and objective.dynamic.adoption is not None)
    if not recipe.teachers or not objective.distils or follows:
        return None
    return build_rule(recipe)
