"""A model's special tokens as its tokenizer has them, so that `generate` begins, pads and ends as it should.

A student made from one family's configuration with another's tokenizer would otherwise wait for a token that is
never written, and write on to the last that is allowed.
"""

from typing import Any, cast

from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


_OTHER_TOKENS = (
    "suppress_tokens",
    "begin_suppress_tokens",
    "bad_words_ids",
    "sequence_bias",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "decoder_start_token_id",
)
"""Fields of a generation config that name tokens of a vocabulary, besides the three that are set here."""


def follow_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Set BOS, EOS and padding of a model's configurations to those of its tokenizer, in place.

    Further ends that a chat model has (`eos_token_id` as a list) stay if the tokenizer's own is among them and all
    are special tokens of it. A token that the tokenizer does not name stays if it is one of its special tokens.
    """
    rows = int(cast(Any, model.get_input_embeddings()).weight.shape[0])
    generation = getattr(model, "generation_config", None)
    before = _as_list(model.config.get_text_config().eos_token_id)
    tokens = {
        "bos_token_id": _single(model, tokenizer, "bos_token_id", rows),
        "pad_token_id": _single(model, tokenizer, "pad_token_id", rows),
    }
    for config in (model.config, model.config.get_text_config(), generation):
        if config is None:
            continue
        for name, value in tokens.items():
            setattr(config, name, value)
        config.eos_token_id = _ends(config, tokenizer)
    if generation is not None:
        if before and tokenizer.eos_token_id not in before:
            _without_other_tokens(generation)
        cast(Any, model).generation_config = _valid(generation)


def _single(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, rows: int) -> int | None:
    own = getattr(tokenizer, name)
    if own is None:
        own = getattr(model.config.get_text_config(), name, None)
        own = own if own in _special(tokenizer) else None
    return own if own is not None and own < rows else None  # such as padding added beyond the embeddings


def _ends(
    config: PretrainedConfig | GenerationConfig, tokenizer: PreTrainedTokenizerBase
) -> int | list[int] | None:
    own = tokenizer.eos_token_id
    given = _as_list(config.eos_token_id)
    are_its = bool(given) and set(given) <= _special(tokenizer)
    if own is None:
        return config.eos_token_id if are_its else None
    return config.eos_token_id if are_its and own in given and len(given) > 1 else cast(int, own)


def _without_other_tokens(generation: GenerationConfig) -> None:
    for name in _OTHER_TOKENS:
        if getattr(generation, name, None) is not None:
            setattr(generation, name, None)


def _valid(generation: GenerationConfig) -> GenerationConfig:
    """The same, as far as transformers saves it; many models on the hub have settings that it refuses."""
    for do_sample in (generation.do_sample, True):  # settings of sampling are refused where there is none
        generation.do_sample = do_sample
        try:
            generation.validate(strict=True)
        except ValueError:
            continue
        return generation
    return GenerationConfig(
        bos_token_id=generation.bos_token_id,
        eos_token_id=generation.eos_token_id,
        pad_token_id=generation.pad_token_id,
    )


def _special(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | {index for index in tokenizer.all_special_ids if isinstance(index, int)}


def _as_list(value: Any) -> list[int]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
