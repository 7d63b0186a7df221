"""The section of a recipe on text that the student writes itself. No torch here."""

from typing import Literal, Self

from pydantic import Field, model_validator

from collegium.recipe.sections.base import Section


class OnPolicySection(Section):
    """Some blocks of each step are replaced by what the student makes of their beginnings."""

    fraction: float = Field(default=0.5, gt=0, le=1)
    """Probability that a block is replaced, and weight of the student's text in a step's loss."""
    prompt_length: int = Field(default=64, ge=1)
    """Tokens of the prompt, from the block's longest document; half of one that is no longer than that."""
    max_new_tokens: int = Field(default=128, ge=1)
    """Tokens that the student writes at most."""
    temperature: float = Field(default=0.9, gt=0)
    """Divides the logits that tokens are drawn from; not those of the loss."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Draw from the most probable tokens that hold this mass; 1 is all."""
    teacher_share: float = Field(default=0.0, ge=0, lt=1)
    """Draw from a p + (1 - a) q, a being this share of the fused teachers; MiniLLM has 0.2."""
    stop_at_eos: bool = True
    """End a text at the tokenizer's EOS, if it has one."""
    loss: Literal["divergence", "policy_gradient"] = "divergence"
    """On the student's text: the objective's divergence alone (GKD), or with a policy gradient (MiniLLM)."""
    judge: Literal["mixture", "route", "consensus"] = "mixture"
    """Whose log-probability is the reward: the objective's fusion, the teacher of greatest weight, or the fusion
    where all teachers agree that a token is better, or worse, than the student thinks."""
    gamma: float = Field(default=0.95, ge=0, le=1)
    """Discount of later rewards in the return of a token."""
    reward_scale: float = Field(default=0.5, gt=0)
    """Divides rewards before they are clipped."""
    reward_clip: float = Field(default=100.0, gt=0)
    """Bound of a reward."""
    ratio_clip: float = Field(default=0.2, gt=0, lt=1)
    """Half-width of the range of importance weights within which the policy gradient counts."""
    single_step_weight: float = Field(default=1.0, ge=0)
    """Weight of the divergence beside the policy gradient."""

    @model_validator(mode="after")
    def _rewards_need_a_policy_gradient(self) -> Self:
        read = {"judge", "gamma", "reward_scale", "reward_clip", "ratio_clip", "single_step_weight"}
        fields = type(self).model_fields
        unread = sorted(name for name in read if getattr(self, name) != fields[name].default)
        if self.loss == "divergence" and unread:
            raise ValueError(
                f"{', '.join(unread)} would have no effect with `loss: divergence`, whose judge is the "
                "objective's own fusion and weighting (a small tau routes): leave it out, or set "
                "`loss: policy_gradient`"
            )
        return self
