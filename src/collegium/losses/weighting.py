"""Weights of teachers that are scored one by one, each from its own figures at each position.

The source paper weights per token by exp(-H) (arXiv:2507.15198), which is a preset. The default averages
entropies over 32 tokens and is twice as sharp (tau 0.5): of thirteen rules it came out best on validation text,
with students of 0.2 million parameters (docs/when-it-helps.md), and on text that changes its domain midway
it was 9 % better in perplexity than single tokens.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from collegium.losses.stretches import Carry, Stretches, fading_sums, require_granularity
from collegium.losses.teacher_weights import entropy_weights, static_weights, uniform_weights, weights_from_scores
from collegium.signals.contracts import Positions, TeacherStats


WeightingName = Literal[
    "uniform",
    "static",
    "domain",
    "entropy",
    "inverse_entropy",
    "most_certain",
    "mt_bert",
    "min_ce",
    "avg_ce",
    "bayes",
]

ENTROPY_EPSILON = 1e-8
"""Nats added to an entropy before it is inverted."""


@dataclass(frozen=True)
class Figures:
    """Figures of one teacher, from which its score is made; see `TeacherStats`."""

    entropy: Float[Tensor, " n"]
    cross_entropy: Float[Tensor, " n"]
    valid: Bool[Tensor, " n"]


class Scorer(Protocol):
    """Scores each teacher from its own figures, so that a loss can mix teachers one after another."""

    @property
    def tau(self) -> float:
        """Divisor of the scores; 0: the highest has it all."""
        ...

    def of(self, teacher: int, figures: Figures, rows: slice) -> Float[Tensor, " n"]:
        """Return scores at `rows`, chunk after chunk from the first on; read where the teacher is valid."""
        ...


@dataclass(frozen=True)
class Weighting:
    """The share of each teacher at each position: exp(score / tau), normalised over teachers.

    A teacher's score depends on that teacher alone, so a loss can mix teachers one after another
    and divide by the sum of their shares at the end. H and CE are means of entropy and cross-entropy (negative
    log-probability of the label), in nats, over the stretch of text that `granularity` names:

    - `uniform`; `static`: `values`; `domain`: the one teacher that `routes` names for the block's domain.
    - `entropy`: exp(-H / tau), arXiv:2507.15198.
    - `inverse_entropy`: 1 / (H + 1e-8).
    - `most_certain`: the lowest H has it all.
    - `mt_bert`: 1 / (1 + CE), arXiv:2106.01023.
    - `min_ce`: the lowest CE has it all; `avg_ce`: exp(exp(-CE)), as in FuseLLM (arXiv:2401.10491).
    - `bayes`: exp(-sum over s < t of decay^(t-1-s) CE[s]), the posterior after the past of the segment.

    Equal ones share. `mt_bert`, `min_ce` and `avg_ce` read the label of the position itself, unless
    `granularity` is `causal`, which shows them past labels only, as `bayes` does. In these past sums a teacher
    that said nothing somewhere counts as a uniform distribution there.

    Attributes:
        kind: Name of the rule, as above.
        granularity: Stretch of the means: `token`, `sequence`, `window:W`, or `causal:W`, a mean that fades
            by 1 - 1/W a position and knows nothing of what follows.
        tau: Sharpness of `entropy`, in nats.
        values: Weight of each teacher, for `static`.
        decay: Decay of `bayes`; 1 forgets nothing.
        routes: Index of the teacher of each domain, for `domain`.

    Raises:
        ValueError: there is no such kind, or it cannot be used with these values.
    """

    kind: WeightingName = "entropy"
    granularity: str = "window:32"
    tau: float = 0.5
    values: tuple[float, ...] | None = None
    decay: float = 0.97
    routes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse a kind that does not exist, and values that it cannot use."""
        if self.kind not in RULES:
            raise ValueError(f"there is no weighting {self.kind!r}: give one of {', '.join(RULES)}")
        require_granularity(self.granularity)
        if not self.tau > 0:
            raise ValueError(f"tau is {self.tau}; it must be above 0")
        if (self.kind == "static") != (self.values is not None):
            raise ValueError(f"values, a weight for each teacher, go with `static`; the kind is {self.kind!r}")
        if self.kind == "domain" and self.routes is None:
            raise ValueError("the weighting `domain` needs routes, the index of the teacher of each domain")

    @property
    def rule(self) -> "ScoreRule":
        """The rule of this kind."""
        return RULES[self.kind]

    @property
    def is_known_ahead(self) -> bool:
        """True if the weights at a position are known before its label."""
        return self.rule.averages != "cross_entropy" or self.granularity.startswith("causal")

    @property
    def entropy_stretch(self) -> str | None:
        """Granularity of the entropies that set the weights; None if none do."""
        return self.granularity if self.rule.averages == "entropy" else None

    def __call__(self, stats: TeacherStats, positions: Positions) -> Float[Tensor, "N M"]:
        """Return weights; rows sum to 1 over valid teachers."""
        scores = self.scorer(positions)
        everywhere = slice(0, len(positions))
        columns = [scores.of(m, figures, everywhere) for m, figures in enumerate(figures_of(stats))]
        return weights_from_scores(torch.stack(columns, -1), stats.valid, tau=scores.tau)

    def of_next_token(self, entropy: Float[Tensor, "R M"], valid: Bool[Tensor, "R M"]) -> Float[Tensor, "R M"]:
        """Return weights before the next token of each text is known.

        `entropy` and `static` weigh as in the loss, always at the granularity of a token, as later text is not
        there yet; other kinds are uniform here.
        """
        return self.rule.of_next_token(self, entropy, valid)

    def scorer(self, positions: Positions) -> "Scores":
        """Prepare the scores of the teachers on these positions, to be asked chunk after chunk."""
        return Scores(self, positions)

    def groups(self, positions: Positions) -> Int[Tensor, " N"] | None:
        """Number the stretches of text that no chunk may cut; None if chunks may lie anywhere."""
        return self.scorer(positions).stretches.groups


class Scores:
    """The scores of one batch under a `Weighting`, with what they carry from chunk to chunk.

    Raises:
        ValueError: the weighting goes by domain, and the batch does not say its domains.
    """

    def __init__(self, weighting: Weighting, positions: Positions) -> None:
        self.weighting = weighting
        self.positions = positions
        averages = weighting.rule.averages
        granularity = "token" if averages is None else weighting.granularity
        self.stretches = Stretches(positions, granularity, past_only=averages == "cross_entropy")
        self.carries: dict[int, Carry | None] = {}
        if weighting.rule.reads_domains and positions.domains is None:
            raise ValueError(
                "weights by domain, but the batch does not say which domain its blocks are of: "
                "give BlockCollator the names of the domains"
            )

    @property
    def tau(self) -> float:
        """Divisor of the scores."""
        fixed = self.weighting.rule.tau
        return self.weighting.tau if fixed is None else fixed

    def of(self, teacher: int, figures: Figures, rows: slice) -> Float[Tensor, " n"]:
        """Return scores of one teacher; see `Scorer`."""
        return self.weighting.rule.score(self, teacher, figures, rows)


# The rules. Each scores one teacher at some rows, from its figures there.


def _equal(scores: Scores, teacher: int, figures: Figures, rows: slice) -> Float[Tensor, " n"]:
    return torch.zeros_like(figures.entropy)


def _fixed(scores: Scores, teacher: int, figures: Figures, rows: slice) -> Float[Tensor, " n"]:
    assert scores.weighting.values is not None, "static weights have values"
    return figures.entropy.new_tensor(scores.weighting.values[teacher]).log().expand_as(figures.entropy)


def _routed(scores: Scores, teacher: int, figures: Figures, rows: slice) -> Float[Tensor, " n"]:
    domains = scores.positions.domains
    assert domains is not None and scores.weighting.routes is not None, "seen in Scores.__init__"
    routes = torch.tensor(scores.weighting.routes, device=figures.entropy.device)
    chosen = routes[domains[rows]] == teacher
    return torch.zeros_like(figures.entropy).masked_fill(~chosen, -torch.inf)


def _posterior(scores: Scores, teacher: int, figures: Figures, rows: slice) -> Float[Tensor, " n"]:
    sums, scores.carries[teacher] = fading_sums(
        figures.cross_entropy.unsqueeze(-1),
        scores.positions.segments[rows],
        scores.weighting.decay,
        past_only=True,
        carry=scores.carries.get(teacher),
    )
    return -sums.squeeze(-1)


def _uniform_next(weighting: Weighting, entropy: Tensor, valid: Tensor) -> Tensor:
    return uniform_weights(valid, dtype=entropy.dtype)


def _static_next(weighting: Weighting, entropy: Tensor, valid: Tensor) -> Tensor:
    assert weighting.values is not None, "static weights have values"
    return static_weights(entropy.new_tensor(weighting.values), valid)


def _entropy_next(weighting: Weighting, entropy: Tensor, valid: Tensor) -> Tensor:
    return entropy_weights(entropy, tau=weighting.tau, valid=valid)


@dataclass(frozen=True)
class ScoreRule:
    """Rule of one kind of weighting.

    Attributes:
        score: Scores of a teacher at some rows.
        averages: The figure that is averaged over a stretch of text; None: `granularity` has no effect.
        tau: Divides the scores; None: `Weighting.tau` does.
        reads_domains: True if it must know the domain of each position.
        of_next_token: See `Weighting.of_next_token`.
    """

    score: Callable[[Scores, int, Figures, slice], Tensor]
    averages: Literal["entropy", "cross_entropy"] | None = None
    tau: float | None = 1.0
    reads_domains: bool = False
    of_next_token: Callable[[Weighting, Tensor, Tensor], Tensor] = _uniform_next


def _by_entropy(score: Callable[[Tensor], Tensor], *, tau: float | None = 1.0) -> ScoreRule:
    """Make a rule that scores the mean entropy."""

    def of(scores: Scores, teacher: int, figures: Figures, rows: slice) -> Tensor:
        return score(scores.stretches.means(figures.entropy, figures.valid, rows, teacher))

    return ScoreRule(of, averages="entropy", tau=tau)


def _by_cross_entropy(score: Callable[[Tensor], Tensor], *, tau: float | None = 1.0) -> ScoreRule:
    """Make a rule that scores the mean cross-entropy."""

    def of(scores: Scores, teacher: int, figures: Figures, rows: slice) -> Tensor:
        # Past positions count where the teacher was absent too: its cross-entropy is that of a uniform one there.
        counts = torch.ones_like(figures.valid) if scores.stretches.past_only else figures.valid
        return score(scores.stretches.means(figures.cross_entropy, counts, rows, teacher))

    return ScoreRule(of, averages="cross_entropy", tau=tau)


RULES: Mapping[WeightingName, ScoreRule] = {
    "uniform": ScoreRule(_equal),
    "static": ScoreRule(_fixed, of_next_token=_static_next),
    "domain": ScoreRule(_routed, reads_domains=True),
    "entropy": replace(_by_entropy(torch.neg, tau=None), of_next_token=_entropy_next),
    "inverse_entropy": _by_entropy(lambda mean: -(mean + ENTROPY_EPSILON).log()),
    "most_certain": _by_entropy(torch.neg, tau=0.0),
    "mt_bert": _by_cross_entropy(lambda mean: -mean.log1p()),
    "min_ce": _by_cross_entropy(torch.neg, tau=0.0),
    "avg_ce": _by_cross_entropy(lambda mean: (-mean).exp()),
    "bayes": ScoreRule(_posterior),
}
"""The rule of each kind; `Weighting` describes them."""


def figures_of(stats: TeacherStats) -> list[Figures]:
    """Split statistics into the figures of each teacher."""
    columns = (stats.entropy.unbind(-1), stats.cross_entropy.unbind(-1), stats.valid.unbind(-1))
    return [Figures(*column) for column in zip(*columns, strict=True)]


@dataclass(frozen=True)
class GivenScores:
    """Scores that are known beforehand, from a router for example: weights exp(score / tau).

    Teachers are still mixed in one pass, and those that turn out invalid there get no weight. No gradient
    flows into the scores.

    Attributes:
        scores: Any finite number, or -inf for no weight at all.
        tau: Divides the scores; 0: the highest has it all, and equal ones share.
    """

    scores: Float[Tensor, "N M"]
    tau: float = 1.0

    def __call__(self, stats: TeacherStats, positions: Positions) -> Float[Tensor, "N M"]:
        """Return weights; rows sum to 1 over valid teachers."""
        columns = [self.of(m, figures, slice(0, len(positions))) for m, figures in enumerate(figures_of(stats))]
        return weights_from_scores(torch.stack(columns, -1), stats.valid, tau=self.tau)

    def of(self, teacher: int, figures: Figures, rows: slice) -> Float[Tensor, " n"]:
        """Return scores of one teacher; see `Scorer`."""
        return self.scores[rows, teacher].detach().to(figures.entropy.dtype)


@dataclass(frozen=True)
class GivenWeights:
    """Weights that are known beforehand.

    Attributes:
        weights: Rows sum to 1, or are all 0 where no teacher counts.
        valid: True where a teacher's logits may be read.
    """

    weights: Float[Tensor, "N M"]
    valid: Bool[Tensor, "N M"]
