"""The `Modelfile` by which Ollama runs a GGUF file: where it is, its context, where an answer ends.

Ollama's templates are in another language than those of tokenizers. A ChatML template is recognised by what it
renders and written in Ollama's; any other one is left to Ollama, which recognises the usual ones in the GGUF
file itself. Without a chat template nothing is written: the prompt is text to be continued.
"""

from transformers import GenerationConfig, PreTrainedTokenizerBase


_CHATML = (
    "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"
)

_SAMPLING = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}
"""Name in transformers -> name in Ollama."""


def modelfile(
    gguf_name: str,
    tokenizer: PreTrainedTokenizerBase,
    generation: GenerationConfig | None,
    *,
    context_length: int,
) -> str:
    """The text of a Modelfile that lies beside the GGUF file.

    Args:
        gguf_name: Name of the file.
        tokenizer: The model's.
        generation: What the model was published with.
        context_length: Tokens that it can read.
    """
    lines = [f"FROM ./{gguf_name}", *_template(tokenizer), f"PARAMETER num_ctx {context_length}"]
    lines += [f"PARAMETER stop {_quoted(token)}" for token in stop_tokens(tokenizer, generation)]
    if generation is not None and generation.do_sample:
        values = {ours: getattr(generation, theirs, None) for theirs, ours in _SAMPLING.items()}
        lines += [f"PARAMETER {name} {value}" for name, value in values.items() if value is not None]
    return "\n".join(lines) + "\n"


def stop_tokens(tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig | None) -> list[str]:
    """Spelling of the tokens that end an answer: EOS of the tokenizer, and those of the generation settings."""
    eos = None if generation is None else generation.eos_token_id
    ids = [tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [eos])]
    added = tokenizer.added_tokens_decoder  # a stop that is not a single token would end answers in the middle
    known = [int(index) for index in dict.fromkeys(ids) if isinstance(index, int) and index in added]
    return [str(token) for token in tokenizer.convert_ids_to_tokens(known)]


def _template(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    if tokenizer.chat_template is None:
        return []
    if is_chatml(tokenizer):
        return [f'TEMPLATE """{_CHATML}"""']
    return ["# The chat template is in the GGUF file; Ollama recognises the usual ones by themselves."]


def is_chatml(tokenizer: PreTrainedTokenizerBase) -> bool:
    """True if the tokenizer's chat template renders a conversation as ChatML does."""
    roles = ("system", "user", "assistant", "user")
    messages = [{"role": role, "content": f"text {number}"} for number, role in enumerate(roles)]
    expected = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
    try:
        rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception:  # a template may raise whatever it likes, for instance at a system message
        return False
    return bool(rendered == f"{expected}<|im_start|>assistant\n")


def _quoted(token: str) -> str:
    return '"' + token.replace("\\", "\\\\").replace('"', '\\"') + '"'
