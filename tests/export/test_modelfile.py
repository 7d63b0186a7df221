import copy

import pytest
from transformers import GenerationConfig

from collegium.export.modelfile import is_chatml, modelfile, stop_tokens
from tests.support.small_tokenizers import byte_level


CHATML = (
    "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture
def tokenizer():
    return copy.deepcopy(byte_level())


def test_a_base_model(tokenizer):
    text = modelfile("model.gguf", tokenizer, GenerationConfig(eos_token_id=1), context_length=2048)
    assert text == 'FROM ./model.gguf\nPARAMETER num_ctx 2048\nPARAMETER stop "</s>"\n'


def test_sampling_is_written_where_the_model_samples(tokenizer):
    generation = GenerationConfig(do_sample=True, temperature=0.7, top_p=0.9, repetition_penalty=1.1)
    lines = modelfile("m.gguf", tokenizer, generation, context_length=8).splitlines()
    settings = {"PARAMETER temperature 0.7", "PARAMETER top_p 0.9", "PARAMETER repeat_penalty 1.1"}
    assert settings <= set(lines)
    generation.do_sample = False
    assert not settings & set(modelfile("m.gguf", tokenizer, generation, context_length=8).splitlines())


def test_stops_are_tokens_of_their_own(tokenizer):
    tokenizer.add_special_tokens({"additional_special_tokens": ['<"end">']})
    end = tokenizer.convert_tokens_to_ids('<"end">')
    generation = GenerationConfig(eos_token_id=[1, end, 300, 10**6])  # 300 is a piece of a word
    assert stop_tokens(tokenizer, generation) == ["</s>", '<"end">']
    assert 'PARAMETER stop "<\\"end\\">"' in modelfile("m.gguf", tokenizer, generation, context_length=8)
    assert stop_tokens(tokenizer, None) == ["</s>"]


def test_chatml_is_told_by_what_it_renders(tokenizer):
    tokenizer.chat_template = CHATML
    assert is_chatml(tokenizer)
    text = modelfile("m.gguf", tokenizer, None, context_length=8)
    assert 'TEMPLATE """{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n' in text


@pytest.mark.parametrize("template", ["{{ raise_exception('no system') }}", "[INST] {{ messages[1]['content'] }}"])
def test_another_template_is_left_to_ollama(tokenizer, template):
    tokenizer.chat_template = template
    text = modelfile("m.gguf", tokenizer, None, context_length=8)
    assert "TEMPLATE" not in text and text.splitlines()[1].startswith("# The chat template is in the GGUF file")
