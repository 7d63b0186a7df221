"""The exponential of a loss, which has no end where the loss is above 709 nats: the one place that takes it."""

import math


def perplexity_of(nll: float) -> float:
    """exp of a mean loss in nats; infinite where a float cannot hold it, so that a bad student ends no run."""
    try:
        return math.exp(nll)
    except OverflowError:
        return math.inf


def shown_perplexity(nll: float) -> str:
    """The same for people, with one digit behind the point."""
    value = perplexity_of(nll)
    return f"{value:.1f}" if math.isfinite(value) else "beyond all numbers"
