"""Sections of a recipe for terms that compare a student with teachers in their own vocabularies. No torch here."""

from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, model_validator

from collegium.recipe.sections.base import Section
from collegium.recipe.sections.schedule import Weight


class CrossTokenizerTermSection(Section):
    """Common to these terms."""

    weight: Weight = 1.0
    """Among the terms; cross_tokenizer_weight multiplies all of them. A number, or a schedule."""
    importance: dict[str, float] | None = None
    """What each teacher counts, by name; equal if not given. They are normalised to sum to 1."""

    def lacks(self, mode: str | None) -> tuple[str, str] | None:
        """Something it reads that a cache of this mode, if known, does not hold, and the setting that fixes it."""
        if mode in (None, "hidden_states"):
            return None
        return f"whole distributions, which cache.mode {mode} does not hold", "cache.mode: hidden_states"


class UldSection(CrossTokenizerTermSection):
    """Sorted probabilities, whatever tokens they are of (ULD, arXiv:2402.12030)."""

    kind: Literal["uld"]
    """Compared at the first token of each stretch of text that both tokenizers delimit."""
    temperature: float = Field(default=1.0, gt=0)
    """Softens both sides."""


class GoldSection(CrossTokenizerTermSection):
    """Tokens that both vocabularies have one by one, the rest sorted (GOLD of TRL)."""

    kind: Literal["gold"]
    """Compared once for each stretch of text that both tokenizers delimit."""
    beta: float = Field(default=0.5, ge=0, le=1)
    """Balance of the Jensen-Shannon divergence on shared tokens: 0 is the forward KL, 1 the reverse KL."""
    merge: Literal["bayesian", "first"] = "bayesian"
    """A stretch of several tokens: the distribution at its last one, times the probability of the earlier ones; or
    that at its first one, where the text's own token has the probability of the whole stretch."""
    matched_weight: float | None = Field(default=None, ge=0)
    """Weight of the divergence on shared tokens; by default their share of the teacher's vocabulary."""
    unmatched_weight: float | None = Field(default=None, ge=0)
    """Weight of the sorted rest; by default the remainder."""
    temperature: float = Field(default=1.0, gt=0)
    """Softens both sides."""

    @model_validator(mode="after")
    def _weights_go_together(self) -> Self:
        if (self.matched_weight is None) != (self.unmatched_weight is None):
            raise ValueError("give both of matched_weight and unmatched_weight, or neither")
        return self


class AlmSection(CrossTokenizerTermSection):
    """Probability of each chunk of text (ALM, arXiv:2503.20083)."""

    kind: Literal["alm"]
    """The only one that lists of a cache serve."""
    tau: float = Field(default=100.0, gt=0)
    """Probabilities are taken to the power 1 / tau; large weighs likely and unlikely chunks the same."""
    debias: bool = True
    """Multiply by the probability that a token boundary follows. Not for a teacher with the student's tokenizer,
    which needs none, nor for lists, which do not know it."""
    threshold: float = Field(default=0.1, ge=0, le=1)
    """`debias`: a chunk goes on until the teacher's probability of a boundary after it is above this."""

    def lacks(self, mode: str | None) -> tuple[str, str] | None:
        """Nothing: every cache knows the probability of the text."""
        return None


class DskdSection(CrossTokenizerTermSection):
    """Hidden states carried over by cross-model attention (DSKD, arXiv:2406.17328)."""

    kind: Literal["dskd"]
    """Projections belong to the training and are not exported."""
    temperature: float = Field(default=2.0, gt=0)
    """Temperature of both KLs, which are not multiplied by its square."""

    def lacks(self, mode: str | None) -> tuple[str, str] | None:
        """See `CrossTokenizerTermSection`."""
        return "the teacher's input embeddings, which no cache holds", "kind: uld, gold or alm"


CrossTokenizerSection = Annotated[UldSection | GoldSection | AlmSection | DskdSection, Discriminator("kind")]
"""One of the kinds."""
