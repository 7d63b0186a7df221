"""A divergence from its section: plain functions of student and target, and those that need more."""

from functools import partial

from collegium.divergence_sections import (
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
from collegium.errors import RecipeError
from collegium.functional.blended_divergences import adaptive_kl, skew_forward_kl, skew_reverse_kl, todi
from collegium.functional.divergences import (
    Divergence,
    alpha_beta,
    forward_kl,
    generalized_jsd,
    reverse_kl,
    total_variation,
)


def build_divergence(section: DivergenceSection) -> Divergence:
    """The function of a section; parameters are keywords of a `partial`, so that the fused loss sees them.

    Raises:
        RecipeError: the divergence cannot be had with these parameters.
    """
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
        case TaidSection() | DecoupledSection() | Distillm2Section():
            return build_dependent_divergence(section)


def build_dependent_divergence(section: TaidSection | DecoupledSection | Distillm2Section) -> Divergence:
    """One that needs the labels, who wrote the text, or the step besides both distributions.

    Raises:
        RecipeError: the loss does not hand that over.
    """
    match section:
        case Distillm2Section(adaptive=False, gradual=False):  # on given text; all text is given so far
            return partial(skew_forward_kl, alpha=section.alpha)
        case Distillm2Section():
            needed = "who wrote a block and the step of the run (leave adaptive and gradual false)"
        case TaidSection():
            needed = "the step of the run and the loss of the last one"
        case DecoupledSection():
            needed = "the labels and the step of the run"
    raise RecipeError(f"objective.divergence: {section.kind} needs {needed}, which the loss does not hand over")
