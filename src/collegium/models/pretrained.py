"""Models and tokenizers by reference: a hub id, a folder, a GGUF file, or a file inside a package.

Only safetensors are read, whole (`loading`); a GGUF file is turned into such first (`gguf`). What the loss relies
on is tried in every model by `probe`.
"""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from collegium.alignment.tokenizer_match import leave_out_above
from collegium.base.digests import verify_folder
from collegium.base.errors import DataError, RecipeError, pass_on_full_disk
from collegium.base.progress import Phase
from collegium.base.references import resolve_reference
from collegium.models.documents import states_by_document
from collegium.models.gguf import dequantized, gguf_parts
from collegium.models.layer_settings import resize_layers
from collegium.models.loading import read_model, reason_of, unloadable


logger = logging.getLogger(__name__)

Module = TypeVar("Module", bound=nn.Module)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_dtype(name: str, device: torch.device | None = None) -> torch.dtype:
    """The torch dtype; `auto` is bfloat16 where `device` multiplies in it natively, else float32."""
    if name != "auto":
        return DTYPES[name]
    if (device is None or device.type == "cuda") and torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    capabilities = torch.backends.cpu.get_cpu_capability()
    native = "AVX512" in capabilities and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native else torch.float32


def load_tokenizer(
    reference: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load a tokenizer.

    Raises:
        DataError: it cannot be found or read.
    """
    folder, gguf_file = _locate(reference)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, revision=revision, trust_remote_code=trust_remote_code, gguf_file=gguf_file
        )
    except Exception as error:  # transformers raises anything from OSError to KeyError here
        pass_on_full_disk(error)
        raise unloadable("tokenizer", reference, error) from error
    if gguf_file is None:  # which lists a token for each row
        with contextlib.suppress(Exception):  # of a tokenizer without a model beside it
            config = AutoConfig.from_pretrained(folder, revision=revision, trust_remote_code=trust_remote_code)
            leave_out_above(tokenizer, int(config.get_text_config().vocab_size))
    return tokenizer


def load_model(
    reference: str,
    *,
    dtype: torch.dtype,
    revision: str | None = None,
    trust_remote_code: bool = False,
    device_map: str | dict[str, int | str] | None = None,
) -> PreTrainedModel:
    """Load a causal language model, in evaluation mode.

    Raises:
        DataError: it cannot be found or read, has no safetensors, or its files do not hold all of it and nothing
            else.
    """
    with Phase(f"loading {reference}"):
        folder, gguf_file = _locate(reference)
        if gguf_file is not None:
            folder = str(dequantized(Path(folder) / gguf_file))
        verify_folder(Path(folder))
        return read_model(
            folder,
            reference=reference,
            dtype=dtype,
            revision=revision,
            trust_remote_code=trust_remote_code,
            device_map=device_map,
        )


def model_from_config(
    reference: str,
    *,
    overrides: Mapping[str, Any],
    dtype: torch.dtype,
    seed: int,
    revision: str | None = None,
) -> PreTrainedModel:
    """A model with random weights, made the same by the same seed.

    Raises:
        DataError: the configuration cannot be read, has no such field, or makes no model with these values.
        RecipeError: its settings of layers cannot follow their number.
    """
    folder, _ = _locate(reference)
    config = _read_config(folder, reference, {"revision": revision})
    unknown = [name for name in overrides if not hasattr(config, name)]
    if unknown:
        raise DataError(f"student.overrides: {type(config).__name__} has no field {unknown[0]!r}")
    torch.manual_seed(seed)
    try:
        layers = config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
        for name in ("num_hidden_layers", layers):
            if isinstance(overrides.get(name), int):
                resize_layers(config, overrides[name], given=overrides)
        for name, value in overrides.items():
            setattr(config, name, value)
        config.validate()  # else first when the trained student is saved
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    except RecipeError:
        raise
    except Exception as error:
        raise DataError(
            f"student.overrides: {type(config).__name__} makes no model with {overrides} ({reason_of(error)})"
        ) from error
    return model


def load_config(
    reference: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PretrainedConfig:
    """The configuration of a model, without its weights.

    Raises:
        DataError: it cannot be found or read.
    """
    folder, gguf_file = _locate(reference)
    if gguf_file is not None:
        folder = str(dequantized(Path(folder) / gguf_file))
    return _read_config(folder, reference, {"revision": revision, "trust_remote_code": trust_remote_code})


def count_parameters(
    reference: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> int | None:
    """Parameters of the model that a configuration makes, tied ones once; None if that cannot be known.

    Nothing is read but the configuration, and no memory is taken for weights.
    """
    try:
        config = load_config(reference, revision=revision, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
        return int(model.num_parameters())
    except Exception as error:  # of any library; a count is worth no run
        pass_on_full_disk(error)
        return None


def _read_config(folder: str, reference: str, options: dict[str, Any]) -> PretrainedConfig:
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, **options)
    except Exception as error:
        pass_on_full_disk(error)
        raise unloadable("configuration", reference, error) from error
    return config


def place(model: Module, device: torch.device) -> Module:
    """Move the model to the device; returns it."""
    return model.to(device)


def causal_lm_of(model: nn.Module) -> PreTrainedModel:
    """The causal language model itself, below any adapter."""
    return cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)


def trunk_of(model: nn.Module) -> nn.Module:
    """The part of a causal language model below its head, under an adapter too."""
    causal_lm = causal_lm_of(model)
    if causal_lm.base_model is not causal_lm:
        return causal_lm.base_model
    return cast(nn.Module, causal_lm.model)  # of a class that gives its trunk another name than it says (Llama 4)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and back into the one that it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def read_documents_alone(model: PreTrainedModel) -> None:
    """Let `last_hidden_states` give each document a row of its own, since the model lets them see each other."""
    model.collegium_reads_alone = True  # type: ignore[assignment]  # an attribute, which stays with copies


def reads_documents_alone(model: nn.Module) -> bool:
    """See whether each document gets a row of its own."""
    return bool(getattr(causal_lm_of(model), "collegium_reads_alone", False))


def last_hidden_states(model: nn.Module, input_ids: Tensor, position_ids: Tensor) -> Tensor:
    """Output of the trunk, [B S D]; positions that restart at 0 keep documents apart."""
    trunk = trunk_of(model)
    if reads_documents_alone(model):
        return states_by_document(
            lambda rows: trunk(input_ids=rows, use_cache=False).last_hidden_state, input_ids, position_ids
        )
    hidden: Tensor = trunk(input_ids=input_ids, position_ids=position_ids, use_cache=False).last_hidden_state
    return hidden


def _locate(reference: str) -> tuple[str, str | None]:
    """Folder or hub id, and the GGUF file in it if it is one."""
    path = resolve_reference(reference)
    if not path.endswith(".gguf"):
        verify_folder(Path(path), with_weights=False)
        return path, None
    file = Path(path)
    if not file.is_file():
        raise DataError(f"{reference}: no such GGUF file")
    return str(file.parent), gguf_parts(file)[0].name
