"""Settings in a model's files that decide its numbers, for telling whether a model is still the one it was.

Weights alone do not: another `rope_theta` in config.json, or another `lora_alpha` in adapter_config.json, is
another teacher. Read as JSON, not from the objects that libraries make of it, which hold whatever a version of
theirs adds. Every key counts but those known to decide nothing here: names, versions, generation, training,
labels. An unknown one counts, so that a cache is refused once too often rather than once too seldom. No torch
here.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download

from collegium.base.durable import file_digest
from collegium.base.errors import DataError, one_line, pass_on_full_disk
from collegium.base.references import resolve_reference
from collegium.models.adapter_config import CONFIG_NAME as ADAPTER_CONFIG


MODEL_CONFIG = "config.json"

GGUF_VERSION = 2
"""Of how GGUF files are read; raised when the same file gives another model."""

_NAMES = """
    _name_or_path name_or_path _commit_hash transformers_version architectures model_name tokenizer_class prefix
    unsloth_version unsloth_fixed transformers.js_config peft_version base_model_name_or_path revision
"""
_GENERATION = """
    use_cache cache_implementation bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id
    forced_bos_token_id forced_eos_token_id max_length min_length max_new_tokens do_sample early_stopping num_beams
    num_beam_groups diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty
    no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences suppress_tokens
    begin_suppress_tokens exponential_decay_length_penalty remove_invalid_values output_scores
    return_dict_in_generate
"""
_TRAINING = """
    initializer_range initializer_factor init_std init_lora_weights init_weights loftq_config eva_config
    corda_config lora_ga_config inference_mode task_type gradient_checkpointing router_aux_loss_coef
    router_z_loss_coef router_jitter_noise output_router_logits
"""
_OUTPUT = """
    id2label label2id num_labels problem_type finetuning_task task_specific_params output_attentions
    output_hidden_states return_dict use_return_dict torchscript
"""
NEUTRAL = frozenset(f"{_NAMES} {_GENERATION} {_TRAINING} {_OUTPUT}".split())
"""Keys that decide no number of a model that is loaded with its weights and evaluated."""

_DROPOUT = re.compile(r"(.*_)?(layer|p)?drop(out)?(_(prob|rate|p))?|.*dropout.*|drop_path_rate")
"""Keys of what is switched off in evaluation."""

_RENAMED = {"torch_dtype": "dtype"}

Settings = dict[str, Any]
"""Settings by the file that holds them, as JSON."""


def teacher_settings(
    model: str, *, adapter: str | None = None, adapter_revision: str | None = None, runs_code: bool = False
) -> Settings:
    """Settings of a teacher: those of its model, and of its adapter if it has one.

    Raises:
        DataError: they cannot be read.
    """
    own = model_settings(model, runs_code=runs_code)
    return own if adapter is None else own | adapter_settings(adapter, revision=adapter_revision)


def model_settings(reference: str, *, runs_code: bool = False) -> Settings:
    """Settings of a model in a folder, or the version by which its GGUF file is read.

    Those of a hub id are in its commit, which is part of its fingerprint.

    Args:
        reference: As in a recipe.
        runs_code: Its own code is run, so that counts too.

    Raises:
        DataError: they cannot be read.
    """
    path = Path(resolve_reference(reference))
    if reference.endswith(".gguf"):
        return {"GGUF files": {"reader": GGUF_VERSION}}
    if not path.is_dir():
        return {}
    found: Settings = {MODEL_CONFIG: decisive(_read(path / MODEL_CONFIG, reference))}
    if runs_code:
        found["code"] = {str(f.relative_to(path)): file_digest(f) for f in sorted(path.rglob("*.py"))}
    return found


def adapter_settings(reference: str, *, revision: str | None = None) -> Settings:
    """Settings of an adapter in a folder; the commit of one on the hub.

    Raises:
        DataError: they cannot be read.
    """
    path = Path(resolve_reference(reference))
    if path.is_dir():
        found = decisive(_read(path / ADAPTER_CONFIG, reference))
        return {ADAPTER_CONFIG: {key: _in_order(value) for key, value in found.items()}}
    try:
        file = Path(hf_hub_download(reference, ADAPTER_CONFIG, revision=revision))
    except Exception as error:  # of the hub: no common base
        pass_on_full_disk(error)
        raise DataError(
            f"adapter {reference}: {ADAPTER_CONFIG} cannot be read ({type(error).__name__}: {one_line(error)}); "
            "give the folder or hub id of a PEFT adapter"
        ) from error
    return {"adapter": {"commit": file.parent.name}}  # .../snapshots/COMMIT/NAME


def decisive(content: Mapping[str, Any]) -> Settings:
    """The part of a configuration that decides numbers, at every depth."""
    return {
        _RENAMED.get(key, key): decisive(value) if isinstance(value, Mapping) else value
        for key, value in content.items()
        if key not in NEUTRAL and not _DROPOUT.fullmatch(key)
    }


def _in_order(value: Any) -> Any:
    """PEFT writes sets of names, in an order that means nothing."""
    is_names = isinstance(value, list) and all(isinstance(item, str) for item in value)
    return sorted(value) if is_names else value


def _read(file: Path, reference: str) -> Mapping[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it is no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{reference}: {file.name} cannot be read ({type(error).__name__}: {one_line(error)}); fetch or save "
            "the model again"
        ) from error
    return content
