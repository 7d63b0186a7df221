"""Students made from a model by keeping some of its layers.

Which layers go decides everything: of SmolLM2-135M's thirty, dropping the six from 12 to 17 costs
0.8 nats, dropping those from 20 to 25 costs 4.9. So layers are chosen by measured loss, one at a time.
"""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from collegium.base.errors import RecipeError, one_line
from collegium.base.progress import Phase
from collegium.losses.chunks import chunks
from collegium.losses.precision import full_precision
from collegium.models.as_configured import require_as_configured
from collegium.models.head import ProjectionHead
from collegium.models.inner_states import decoder_layers
from collegium.models.layer_settings import keep_in_config
from collegium.models.pretrained import last_hidden_states
from collegium.signals.contracts import Batch, predicted_positions


logger = logging.getLogger(__name__)


def keep_layers(model: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    """Drop all layers but `kept`, in place; configuration and layer numbers follow.

    Raises:
        RecipeError: `kept` is not increasing, names layers that are not there, or leaves a model that no
            configuration describes.
    """
    _cut(model, kept)
    require_as_configured(model)
    return model


def _cut(model: PreTrainedModel, kept: Sequence[int]) -> None:
    parent, name, layers = decoder_layers(model)
    if list(kept) != sorted(set(kept)) or not kept or not 0 <= kept[0] <= kept[-1] < len(layers):
        raise RecipeError(
            f"student.keep_layers must increase from 0 to at most {len(layers) - 1}, got {list(kept)}"
        )
    keep_in_config(model.config.get_text_config(), kept)  # first, since it may refuse
    setattr(parent, name, nn.ModuleList(layers[i] for i in kept))
    _number(getattr(parent, name))


def _number(layers: nn.ModuleList) -> None:
    """Number the layers by place, which is also their place in the key-value cache."""
    for index, layer in enumerate(layers):
        for module in cast(Iterator[Any], layer.modules()):
            if hasattr(module, "layer_idx"):
                module.layer_idx = index


def check_num_layers(model: PreTrainedModel, num_layers: int) -> None:
    """Require that the model has as many layers as are to be kept.

    Raises:
        RecipeError: it has fewer.
    """
    total = len(decoder_layers(model)[2])
    if num_layers > total:
        raise RecipeError(f"student.num_layers is {num_layers}, but the model has {total} layers")


def choose_layers(model: PreTrainedModel, num_layers: int, batches: Sequence[Batch]) -> list[int]:
    """Layers to keep, found by dropping again and again the one whose absence costs least.

    Loss is the mean negative log-likelihood on `batches`. To keep n of L layers takes (L^2 - n^2) / 2
    passes: 250 for 20 of 30.

    Raises:
        RecipeError: more layers are to be kept than there are.
    """
    check_num_layers(model, num_layers)
    kept = list(range(len(decoder_layers(model)[2])))
    passes = sum(range(num_layers + 1, len(kept) + 1))
    with Phase(f"choosing {num_layers} of {len(kept)} layers", total=passes, unit="passes") as phase:
        while len(kept) > num_layers:
            losses = {}
            for dropped in phase.counted(list(kept)):
                with _only(model, [index for index in kept if index != dropped]):
                    losses[dropped] = mean_nll(model, batches)
            cheapest = min(losses, key=lambda index: losses[index])
            kept.remove(cheapest)
            logger.info("without layer %d: %.3f nats; %d layers left", cheapest, losses[cheapest], len(kept))
    return kept


@contextlib.contextmanager
def _only(model: PreTrainedModel, kept: Sequence[int]) -> Iterator[None]:
    """The model with these layers only, for a while."""
    parent, name, layers = decoder_layers(model)
    config = model.config.get_text_config()
    fields = dict(vars(config))
    _cut(model, kept)
    try:
        yield
    finally:
        setattr(parent, name, layers)
        vars(config).update(fields)
        _number(layers)


@torch.no_grad()
def mean_nll(model: PreTrainedModel, batches: Sequence[Batch]) -> float:
    """Mean negative log-likelihood in nats of the labels of `batches`."""
    vocab_size = model.get_output_embeddings().weight.shape[0]
    head = ProjectionHead.from_model(model, vocab_size)
    total = 0.0
    count = 0
    for batch in batches:
        positions = predicted_positions(batch)
        hidden = positions.select(last_hidden_states(model, batch.input_ids, batch.position_ids))  # [N D]
        for rows in chunks(len(positions), 512):
            total += float(_nll(full_precision(head(hidden[rows])), positions.labels[rows]))
        count += len(positions)
    return total / max(count, 1)


def _nll(logits: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, labels, reduction="sum")


def with_lora(
    model: PreTrainedModel,
    *,
    rank: int,
    alpha: float,
    dropout: float,
    target_modules: str | Sequence[str],
    reference: str,
) -> PeftModel:
    """Freeze the model and put trainable low-rank adapters on it; they name `reference` as their base.

    Raises:
        RecipeError: the model has no such modules.
    """
    targets = target_modules if isinstance(target_modules, str) else list(target_modules)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT only divides it
        lora_dropout=dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    try:
        peft_model = get_peft_model(model, config)
    except ValueError as error:
        raise RecipeError(f"student.lora: {one_line(error)}") from error
    assert isinstance(peft_model, PeftModel)
    peft_model.peft_config["default"].base_model_name_or_path = reference
    return peft_model
