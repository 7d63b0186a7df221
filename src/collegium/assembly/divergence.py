"""A divergence from its section: plain functions of student and target, and those that need more."""

from functools import partial

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
from collegium.losses.positional_divergences import Blend, Decoupled, SkewPair
from collegium.recipe.sections.divergences import (
    AdaptiveKlSection,
    AlphaBetaSection,
    DecoupledSection,
    Distillm2Section,
    DivergenceSection,
    ForwardKlSection,
    JsdSection,
    ReverseKlSection,
    SkewForwardKlSection,
    SkewReverseKlSection,
    TaidSection,
    TodiSection,
    TotalVariationSection,
)
from collegium.training.terms.divergence_schedules import DivergenceSchedule, OwnTextSchedule, TaidSchedule


def build_divergence(section: DivergenceSection) -> Divergence | PositionalDivergence:
    """Find the function of a section; parameters are keywords of a `partial`, so that the fused loss sees them."""
    match section:
        case ForwardKlSection():
            return forward_kl
        case ReverseKlSection():
            return reverse_kl
        case TotalVariationSection():
            return total_variation
        case JsdSection():
            return partial(generalized_jsd, beta=section.beta)
        case SkewForwardKlSection():
            return partial(skew_forward_kl, alpha=section.alpha)
        case SkewReverseKlSection():
            return partial(skew_reverse_kl, alpha=section.alpha)
        case AdaptiveKlSection():
            return partial(adaptive_kl, mu=section.mu)
        case AlphaBetaSection():
            return partial(alpha_beta, alpha=section.alpha, beta=section.beta)
        case TodiSection():
            return todi
        case DecoupledSection():
            return Decoupled(section.alpha, section.beta)
        case TaidSection():
            return Blend()
        case Distillm2Section():
            return SkewPair(section.alpha)


def build_divergence_schedule(section: DivergenceSection) -> DivergenceSchedule | None:
    """Build the schedule of a divergence's parameter; None if it has none that moves."""
    match section:
        case TaidSection():
            return TaidSchedule(start=section.start, end=section.end, alpha=section.alpha, beta=section.beta)
        case Distillm2Section():
            return OwnTextSchedule(gradual=section.gradual)
        case _:
            return None
