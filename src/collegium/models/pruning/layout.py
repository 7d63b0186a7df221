"""The axes of each parameter of a model and the sizes that pruning can cut.

Only architectures of the Llama layout are accepted, by name: a multiplier, a LayerNorm (whose mean runs
over channels) or a norm over all heads that pruning does not know of would give a wrong model silently.
"""

from dataclasses import dataclass, replace
from typing import Literal

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from collegium.base.errors import RecipeError
from collegium.models.inner_states import decoder_layers


Axis = Literal["channels", "queries", "key_values", "neurons"]

ARCHITECTURES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "SmolLM3ForCausalLM",
    "GemmaForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
)

AXES: dict[str, tuple[Axis | None, ...]] = {
    "embed_tokens": (None, "channels"),
    "lm_head": (None, "channels"),
    "q_proj": ("queries", "channels"),
    "k_proj": ("key_values", "channels"),
    "v_proj": ("key_values", "channels"),
    "o_proj": ("channels", "queries"),
    "gate_proj": ("neurons", "channels"),
    "up_proj": ("neurons", "channels"),
    "down_proj": ("channels", "neurons"),
    "q_norm": (None,),  # over one head's dimensions, which stay
    "k_norm": (None,),
    "input_layernorm": ("channels",),
    "post_attention_layernorm": ("channels",),
    "pre_feedforward_layernorm": ("channels",),
    "post_feedforward_layernorm": ("channels",),
    "norm": ("channels",),
}
"""Axes of each module's weight; a bias has the first. None is never cut."""


@dataclass(frozen=True)
class Sizes:
    """Sizes that can be cut, named as in the recipe. The dimension of a head stays, and RoPE with it."""

    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_key_value_heads: int
    num_layers: int

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Sizes":
        """Sizes of a model.

        Raises:
            RecipeError: its architecture cannot be pruned.
        """
        require_known(model)
        config = model.config.get_text_config()
        return cls(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            num_layers=len(decoder_layers(model)[2]),
        )


def target_sizes(
    model: PreTrainedModel,
    *,
    hidden_size: int | None = None,
    intermediate_size: int | None = None,
    num_heads: int | None = None,
    num_key_value_heads: int | None = None,
    num_layers: int | None = None,
) -> Sizes:
    """Sizes after pruning; what is not given stays, but key-value heads take their query heads with them.

    Raises:
        RecipeError: the architecture cannot be pruned, or not to these sizes.
    """
    sizes = Sizes.of(model)
    per_group = sizes.num_heads // sizes.num_key_value_heads
    if num_heads is None and num_key_value_heads is not None:
        num_heads = num_key_value_heads * per_group
    given = {
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_heads": num_heads,
        "num_key_value_heads": num_key_value_heads,
        "num_layers": num_layers,
    }
    for name, size in given.items():
        if size is not None and not 1 <= size <= getattr(sizes, name):
            raise RecipeError(
                f"student.{name} is {size}, but the model has {getattr(sizes, name)}: give 1 to that many"
            )
    target = replace(sizes, **{name: size for name, size in given.items() if size is not None})
    _check_heads(target, per_group)
    _check_config(model, target)
    return target


def _check_heads(target: Sizes, per_group: int) -> None:
    heads = target.num_heads
    groups = target.num_key_value_heads
    if heads % groups or heads // groups > per_group:
        raise RecipeError(
            f"student.num_heads is {heads} for {groups} key-value heads: each takes the same number of query "
            f"heads, at most the model's {per_group}; give a multiple of {groups} up to {groups * per_group}, "
            "or other num_key_value_heads"
        )


def _check_config(model: PreTrainedModel, target: Sizes) -> None:
    """Llama and Gemma 3 insist that the width is a multiple of the number of heads, though nothing needs it."""
    insists = type(model).__name__ in ("LlamaForCausalLM", "Gemma3ForCausalLM")
    if insists and target.hidden_size % target.num_heads:
        raise RecipeError(
            f"student.hidden_size {target.hidden_size} is not a multiple of the {target.num_heads} heads, as "
            f"{type(model).__name__} requires; change hidden_size or num_heads"
        )


def require_known(model: PreTrainedModel) -> None:
    """Require that pruning knows every parameter of the model.

    Raises:
        RecipeError: it does not; the message names the architecture.
    """
    name = type(model).__name__
    own = type(model).__module__.startswith("transformers.models.")
    if name not in ARCHITECTURES or not own:
        raise _refused(name)
    for parameter in dict(model.named_parameters()):
        if module_name(parameter) not in AXES:
            raise _refused(f"{name} with {parameter}")
    for path, module in model.named_modules():
        if path.endswith("_proj") and type(module) is not nn.Linear:
            raise _refused(f"{name} with a {type(module).__name__} as {path}")


def _refused(what: str) -> RecipeError:
    return RecipeError(
        f"student.kind: {what} cannot be pruned in width; known are {', '.join(ARCHITECTURES)}, not quantised. "
        "For others use `kind: layer_drop`"
    )


def module_name(parameter: str) -> str:
    """`q_proj` of `model.layers.0.self_attn.q_proj.weight`."""
    return parameter.split(".")[-2]


def head_dim_of(config: PretrainedConfig) -> int:
    """Dimension of a head, which some configurations derive from the width."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
