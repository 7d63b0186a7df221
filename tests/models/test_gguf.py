"""GGUF files are read as the model that they were made of, or refused with the reason."""

import numpy as np
import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
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
from collegium.export.student_folder import load_student
from collegium.models.gguf import gguf_parts, require_readable
from collegium.models.identity import reference_fingerprint
from collegium.models.pretrained import load_config, load_model, load_tokenizer
from tests.support.gguf_files import gemma_file, rewritten, split
from tests.support.small_students import small_config
from tests.support.small_tokenizers import byte_level


gguf = pytest.importorskip("gguf", reason="needs gguf: pip install 'collegium[export]'")

THETA = {"rope_theta": 10000.0}
LLAMA3 = {
    "rope_type": "llama3",
    **THETA,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
TOKENS = torch.randint(0, 400, (1, 100), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("COLLEGIUM_CACHE", str(tmp_path / "cache"))


def llama(**fields):
    return LlamaForCausalLM(LlamaConfig(**small_config(initializer_range=0.3, **fields)))


MODELS = {
    "llama": llama,
    "llama, head of its own": lambda: llama(tie_word_embeddings=False),
    "llama, wide heads": lambda: llama(head_dim=16),
    "llama, biases": lambda: llama(attention_bias=True),
    "llama, biases of the feed-forward": lambda: llama(mlp_bias=True),
    "llama, another epsilon and base": lambda: llama(
        rms_norm_eps=0.01, rope_parameters={"rope_type": "default", "rope_theta": 500.0}
    ),
    "llama, linear": lambda: llama(rope_parameters={"rope_type": "linear", "factor": 4.0, **THETA}),
    "llama, Llama 3's factors": lambda: llama(rope_parameters=LLAMA3),
    "mistral": lambda: MistralForCausalLM(
        MistralConfig(**small_config(sliding_window=None, initializer_range=0.3))
    ),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**small_config(initializer_range=0.3))),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**small_config(head_dim=16, initializer_range=0.3))),
    "qwen3, biases": lambda: Qwen3ForCausalLM(
        Qwen3Config(**small_config(head_dim=16, initializer_range=0.3, attention_bias=True))
    ),
}


def written(make, folder):
    """A model with weights that matter everywhere, and its file."""
    torch.manual_seed(1)
    model = make()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
        parameter.data = parameter.data.half().float()
    model.save_pretrained(folder / "student")
    byte_level().save_pretrained(folder / "student")
    (folder / "out").mkdir()
    FORMATS["gguf"].write(load_student(folder / "student", "s"), folder / "out")
    return load_model(str(folder / "student"), dtype=torch.float32), folder / "out" / "model.gguf"


@torch.no_grad()
def largest_difference(model, path):
    return float((model(TOKENS).logits - load_model(str(path), dtype=torch.float32)(TOKENS).logits).abs().max())


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_file_is_read_as_the_model_that_it_was_made_of(make, tmp_path):
    model, path = written(make, tmp_path)
    assert largest_difference(model, path) < 1e-3


def test_yarn_is_read_as_transformers_has_it(tmp_path):
    model, path = written(llama, tmp_path)
    keys = {
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 32,
    }
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, **THETA}
    stretched = LlamaForCausalLM(LlamaConfig(**small_config(rope_parameters=rope))).eval()
    stretched.load_state_dict(model.state_dict())
    assert largest_difference(stretched, rewritten(path, tmp_path / "yarn.gguf", keys=keys)) < 1e-3


GEMMA = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "sliding_window": 16,
    "initializer_range": 0.3,
    "query_pre_attn_scalar": 256,
}
LINEAR = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}


@pytest.mark.parametrize(
    ("make", "architecture", "keys"),
    [
        (
            lambda: Gemma2ForCausalLM(
                Gemma2Config(**GEMMA, attn_logit_softcapping=5.0, final_logit_softcapping=3.0)
            ),
            "gemma2",
            {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
        ),
        (
            lambda: Gemma3ForCausalLM(
                Gemma3TextConfig(
                    **GEMMA,
                    rope_parameters={
                        "full_attention": LINEAR,
                        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                    },
                )
            ),
            "gemma3",
            {"rope.freq_base": 1e6, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0},
        ),
    ],
    ids=["gemma2", "gemma3"],
)
def test_gemmas_are_read_with_their_caps_and_stretched_global_layers(make, architecture, keys, tmp_path):
    torch.manual_seed(0)
    model = make().eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    path = gemma_file(model, architecture, tmp_path / "gemma.gguf", keys)
    assert largest_difference(model, path) < 1e-4


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 2.0}, "rope.scaling.type: longrope"),
        ({"llama.rope.scaling.yarn_log_multiplier": 0.1}, "yarn_log_multiplier: 0.1"),
        ({"llama.rope.dimension_count": 4}, "turns 4 of the 8 dimensions"),
        ({"llama.attention.sliding_window": 16}, "a sliding window for which LlamaConfig has no place"),
        ({"llama.attention.clamp_kqv": 3.0}, "llama.attention.clamp_kqv: 3.0"),
        ({"llama.expert_count": 4}, "llama.expert_count: 4"),
    ],
)
def test_what_the_configuration_cannot_say_is_refused(keys, reason, tmp_path):
    _, path = written(llama, tmp_path)
    with pytest.raises(DataError, match=f"{reason}.*give the folder with the safetensors"):
        load_model(str(rewritten(path, tmp_path / "odd.gguf", keys=keys)), dtype=torch.float32)
    with pytest.raises(DataError, match=reason):
        require_readable(tmp_path / "odd.gguf")


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ({"blk.0.attn_q.scale": np.ones(32, np.float32)}, r"holds 1 tensors .*blk.0.attn_q.scale"),
        ({"rope_freqs.weight": np.arange(1, 5).astype(np.float32)}, "not Llama 3's"),
        ({"rope_factors_long.weight": np.ones(4, np.float32)}, "rope_factors_long.weight"),
    ],
)
def test_a_tensor_without_a_place_is_refused(extra, reason, tmp_path):
    _, path = written(llama, tmp_path)
    with pytest.raises(DataError, match=reason):
        load_model(str(rewritten(path, tmp_path / "odd.gguf", extra=extra)), dtype=torch.float32)
    with pytest.raises(DataError, match=reason):
        require_readable(tmp_path / "odd.gguf")


def test_a_file_without_some_tensor_is_refused(tmp_path):
    _, path = written(llama, tmp_path)
    names = [t.name for t in gguf.GGUFReader(path).tensors if t.name != "blk.1.ffn_up.weight"]
    with pytest.raises(
        DataError, match=r"1 tensor of LlamaForCausalLM is in no file .*layers.1.mlp.up_proj.weight"
    ):
        load_model(str(rewritten(path, tmp_path / "few.gguf", tensors=names)), dtype=torch.float32)


def test_parts_are_read_as_one_model(tmp_path):
    model, path = written(llama, tmp_path)
    parts = split(path, tmp_path, parts=3)
    require_readable(parts[1])
    for part in parts:
        assert gguf_parts(part) == parts
        assert largest_difference(model, part) < 1e-3
    assert len(load_tokenizer(str(parts[1]))) == len(load_tokenizer(str(path)))
    before = reference_fingerprint(str(parts[0]), load_config(str(parts[0])))
    parts[2].write_bytes(parts[2].read_bytes() + b"\0")
    assert reference_fingerprint(str(parts[0]), load_config(str(parts[0]))) != before


def test_an_absent_part_is_named(tmp_path):
    _, path = written(llama, tmp_path)
    parts = split(path, tmp_path, parts=3)
    parts[1].unlink()
    with pytest.raises(
        DataError, match="one of 3 parts of a model, of which model-00002-of-00003.gguf is not there"
    ):
        load_model(str(parts[0]), dtype=torch.float32)


def test_parts_of_two_models_are_not_joined(tmp_path):
    _, path = written(llama, tmp_path)
    parts = split(path, tmp_path, parts=2)
    names = [t.name for t in gguf.GGUFReader(parts[1]).tensors]
    rewritten(path, tmp_path / "other.gguf", tensors=names[:3]).replace(parts[1])
    with pytest.raises(DataError, match="fetch all parts of one model again"):
        load_model(str(parts[0]), dtype=torch.float32)
