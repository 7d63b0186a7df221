import importlib.util

import numpy as np
import pytest
import torch
from tokenizers import Regex, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from collegium.base.errors import DataError
from collegium.export.formats import FORMATS
from collegium.export.gguf_reader import _transformers, logits_of, open_gguf
from collegium.export.gguf_vocabulary import gguf_vocabulary
from collegium.export.parity import measure_parity
from collegium.export.student_folder import load_student
from tests.support.pico import byte_tokenizer
from tests.support.small_students import LINES_TEXT, learn, small_config
from tests.support.small_tokenizers import byte_level, sentencepiece_bpe, unigram, word_piece


gguf = pytest.importorskip("gguf", reason="needs gguf: pip install 'collegium[export]'")

GGUF = FORMATS["gguf"]
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def written(student, folder):
    folder.mkdir()
    GGUF.write(student, folder)
    return folder / "model.gguf"


def fields_of(path):
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


@pytest.fixture(scope="module")
def path(student, tmp_path_factory):
    return written(student, tmp_path_factory.mktemp("gguf") / "out")


def test_the_file_says_what_the_model_is(path, student):
    fields = fields_of(path)
    assert (fields["general.architecture"], fields["general.name"]) == ("llama", "small")
    sizes = {"block_count": 2, "embedding_length": 32, "feed_forward_length": 64, "context_length": 128}
    sizes |= {"attention.head_count": 4, "attention.head_count_kv": 2, "vocab_size": 428}
    assert {name: fields[f"llama.{name}"] for name in sizes} == sizes
    assert fields["llama.rope.freq_base"] == 10000.0
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    assert len(tokens) == 428 and tokens[:2] == ["<s>", "</s>"] and tokens[420] == "[PAD420]"
    assert kinds[:2] == [gguf.TokenType.CONTROL] * 2 and kinds[-8:] == [gguf.TokenType.UNUSED] * 8
    assert (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    assert fields["tokenizer.ggml.eos_token_id"] == 1 and fields["tokenizer.ggml.add_bos_token"] is False
    assert fields["tokenizer.ggml.merges"][0].count(" ") == 1


def test_matrices_are_halves_and_a_tied_head_is_left_out(path):
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    assert "output.weight" not in tensors
    assert tensors["token_embd.weight"].data.dtype == np.float16
    assert tensors["output_norm.weight"].data.dtype == np.float32


def test_modelfile_lies_beside(path):
    assert (path.parent / "Modelfile").read_text().startswith("FROM ./model.gguf\nPARAMETER num_ctx 128\n")


def test_the_reader_says_who_it_is_and_agrees(path, student, segments):
    reader, logits = open_gguf(path, 64)
    has_llama_cpp = importlib.util.find_spec("llama_cpp") is not None
    assert reader.startswith("llama-cpp-python" if has_llama_cpp else "transformers")
    parity = measure_parity(segments, logits_of(student.model), logits, vocab_size=420)
    assert parity.top1_agreement >= 0.99 and parity.mean_kl < 1e-4


MODELS = {
    "llama, head of its own": lambda: LlamaForCausalLM(LlamaConfig(**small_config(tie_word_embeddings=False))),
    "llama, wide heads": lambda: LlamaForCausalLM(LlamaConfig(**small_config(head_dim=16))),
    "llama, stretched": lambda: LlamaForCausalLM(
        LlamaConfig(**small_config(rope_parameters={**LLAMA3_ROPE, "rope_type": "linear"}))
    ),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**small_config(sliding_window=None))),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**small_config())),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**small_config(head_dim=128))),
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_every_architecture_is_read_back_by_transformers(make, segments, tmp_path):
    torch.manual_seed(1)
    model = make()
    learn(model, segments, steps=15)
    for parameter in model.parameters():  # biases and norms start where an exchange would not show
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "student")
    byte_level().save_pretrained(tmp_path / "student")
    student = load_student(tmp_path / "student", "s")
    parity = measure_parity(
        segments,
        logits_of(student.model),
        _transformers(written(student, tmp_path / "out")),
        vocab_size=420,
    )
    assert parity.top1_agreement >= 0.98 and parity.mean_kl < 1e-4


def test_factors_of_llama3_are_those_of_transformers(student, tmp_path):
    """The reader of transformers leaves them out, so they are compared as numbers."""
    config = LlamaConfig(**small_config(rope_parameters=LLAMA3_ROPE, head_dim=32, hidden_size=64))
    LlamaForCausalLM(config).save_pretrained(tmp_path / "student")
    byte_level().save_pretrained(tmp_path / "student")
    path = written(load_student(tmp_path / "student", "s"), tmp_path / "out")
    factors = next(t.data for t in gguf.GGUFReader(path).tensors if t.name == "rope_freqs.weight")
    plain = 1.0 / 10000.0 ** (torch.arange(0, 32, 2).float() / 32)
    expected = LlamaForCausalLM(config).model.rotary_emb.inv_freq
    assert torch.allclose(plain / torch.tensor(factors), expected)
    assert factors.min() >= 1.0 and factors.max() == 8.0


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (
            lambda: GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2)),
            "type 'gpt2' is not known",
        ),
        (lambda: MistralForCausalLM(MistralConfig(**small_config(sliding_window=16))), "has sliding windows"),
        (lambda: LlamaForCausalLM(LlamaConfig(**small_config(hidden_act="gelu"))), "activation other than silu"),
        (
            lambda: LlamaForCausalLM(
                LlamaConfig(**small_config(rope_parameters={**LLAMA3_ROPE, "rope_type": "dynamic"}))
            ),
            "type 'dynamic' are not known",
        ),
    ],
)
def test_what_the_file_cannot_say_is_refused(model, reason, tmp_path):
    model().save_pretrained(tmp_path / "student")
    byte_level().save_pretrained(tmp_path / "student")
    with pytest.raises(DataError, match=rf"--to gguf: .*{reason}.*convert_hf_to_gguf.py"):
        written(load_student(tmp_path / "student", "s"), tmp_path / "out")


def with_cuts(*parts):
    """A byte-level tokenizer that cuts text first in another way."""
    tokenizer = byte_level.__wrapped__()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(parts))
    return tokenizer


QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
QWEN2 += r"|\s*[\r\n]+|\s+(?!\S)|\s+"
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
CUTS = {
    "smollm": (pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "qwen2": (pre_tokenizers.Split(Regex(QWEN2), "isolated"), BYTES),
    "llama-bpe": (pre_tokenizers.Split(Regex(QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|")), "isolated"), BYTES),
}


@pytest.mark.parametrize("name", CUTS)
def test_the_first_cut_is_told_by_what_it_does(name):
    assert gguf_vocabulary(with_cuts(*CUTS[name]), 420).pre == name


@pytest.mark.parametrize(
    ("tokenizer", "reason"),
    [
        (sentencepiece_bpe, "byte-fallback BPE; byte-level BPE is needed"),
        (unigram, "Unigram; byte-level BPE is needed"),
        (word_piece, "WordPiece; byte-level BPE is needed"),
        (byte_tokenizer, "no merges"),
        (
            lambda: with_cuts(pre_tokenizers.Split(Regex("x+"), "isolated"), BYTES),
            r"first cut \['x\+'\] is not known",
        ),
        (lambda: with_cuts(pre_tokenizers.ByteLevel(add_prefix_space=True)), "first cut .* is not known"),
    ],
)
def test_a_tokenizer_that_llama_cpp_cuts_otherwise_is_refused(tokenizer, reason):
    with pytest.raises(DataError, match=rf"--to gguf: .*{reason}"):
        gguf_vocabulary(tokenizer(), 1000)


def test_a_file_that_is_cut_short_is_told(path, tmp_path):
    (tmp_path / "model.gguf").write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"model\.gguf: what was written cannot be read back"):
        open_gguf(tmp_path / "model.gguf", 16)


@pytest.fixture(scope="module")
def llama_cpp():
    return pytest.importorskip("llama_cpp", reason="needs llama-cpp-python, which compiles for minutes")


class TestLlamaCpp:
    """llama.cpp itself; the package is compiled at installation, so it is not in any extra."""

    @pytest.mark.parametrize("tied", [True, False])
    def test_agrees(self, llama_cpp, tied, student, segments, tmp_path):
        if not tied:
            model = LlamaForCausalLM(LlamaConfig(**small_config(tie_word_embeddings=False)))
            learn(model, segments)
            model.save_pretrained(tmp_path / "student")
            byte_level().save_pretrained(tmp_path / "student")
            student = load_student(tmp_path / "student", "s")
        reader, logits = open_gguf(written(student, tmp_path / "out"), 64)
        parity = measure_parity(segments, logits_of(student.model), logits, vocab_size=420)
        assert reader.startswith("llama-cpp-python") and parity.top1_agreement >= 0.99

    def test_cuts_text_alike(self, llama_cpp, path, student):
        model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
        for text in LINES_TEXT:
            assert model.tokenize(text.encode(), add_bos=False) == student.tokenizer.encode(text)
