"""Weights are read whole, or refused by name: nothing random, nothing left out."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaModel, Qwen3MoeConfig, Qwen3MoeForCausalLM

from collegium.base.errors import DataError
from collegium.models.loading import require_loadable
from collegium.models.pretrained import load_model
from collegium.models.whole import require_nothing_random
from tests.support.pico import pico_llama


WEIGHTS = "model.safetensors"


@pytest.fixture(params=[True, False], ids=["tied", "head of its own"])
def folder(request, tmp_path):
    pico_llama(layers=4, tied=request.param).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change(folder: Path, renamed) -> None:
    """Write the weights with names as `renamed` gives them; None leaves one out."""
    weights = {renamed(name): tensor for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file({name: t for name, t in weights.items() if name is not None}, folder / WEIGHTS)


def set_config(folder: Path, **fields) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def refused(folder: Path) -> str:
    """The error; the same whether weights are read or only headers."""
    with pytest.raises(DataError) as by_headers:
        require_loadable(str(folder))
    with pytest.raises(DataError) as loaded:
        load_model(str(folder), dtype=torch.float32)
    assert str(by_headers.value) == str(loaded.value)
    return str(loaded.value)


def test_a_whole_model_is_read(folder):
    model = load_model(str(folder), dtype=torch.float32)
    assert require_loadable(str(folder)).device.type == "meta"
    assert not model.training
    stored = load_file(folder / WEIGHTS)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, stored[name])


@pytest.mark.parametrize(
    ("prefix", "advice"),
    [
        ("_orig_mod.", "torch.compile"),
        ("module.", "DistributedDataParallel"),
        ("_fsdp_wrapped_module.", "FSDP"),
        ("base_model.model.", "PEFT"),
        ("student.", "`student.` before each name"),
    ],
)
def test_a_prefix_is_named(folder, prefix, advice):
    change(folder, lambda name: prefix + name)
    message = refused(folder)
    assert "would start from random numbers" in message and "would be left out" in message
    assert prefix in message and advice in message


def test_a_prefix_inside_of_names_is_named(folder):
    change(folder, lambda name: name.replace("model.layers", "model.language_model.layers"))
    assert "model.language_model.layers.0.input_layernorm.weight" in refused(folder)


def test_a_trunk_alone_has_no_head(tmp_path):
    LlamaModel(pico_llama(tied=False).config).save_pretrained(tmp_path)
    message = refused(tmp_path)
    assert "(lm_head.weight)" in message and "the files hold no head" in message


def test_a_trunk_alone_is_whole_where_the_head_is_the_embedding(tmp_path):
    pico_llama().model.save_pretrained(tmp_path)
    model = load_model(str(tmp_path), dtype=torch.float32)
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize(
    "absent", ["model.norm.weight", "model.layers.2.mlp.up_proj.weight", "model.embed_tokens.weight"]
)
def test_one_absent_tensor_is_named(folder, absent):
    change(folder, lambda name: None if name == absent else name)
    if (
        absent == "model.embed_tokens.weight"
        and json.loads((folder / "config.json").read_text())["tie_word_embeddings"]
    ):
        absent = "lm_head.weight"
    assert f"{absent}" in refused(folder)


def test_layers_that_the_files_lack(folder):
    change(folder, lambda name: None if ".layers.2." in name or ".layers.3." in name else name)
    assert "counts 4 layers, of which the files hold the first 2 whole" in refused(folder)


def test_layers_that_the_configuration_does_not_count(folder):
    set_config(folder, num_hidden_layers=2)
    message = refused(folder)
    assert "18 tensors of the files have no place" in message and "set `num_hidden_layers` to 4" in message


def test_a_tensor_without_a_place(folder):
    weights = load_file(folder / WEIGHTS)
    save_file(weights | {"model.layers.0.self_attn.q_proj.bias": torch.zeros(32)}, folder / WEIGHTS)
    assert "1 tensor of the files has no place in LlamaForCausalLM" in refused(folder)


def test_rotary_buffers_of_old_files_are_harmless(folder):
    weights = load_file(folder / WEIGHTS)
    save_file(weights | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}, folder / WEIGHTS)
    load_model(str(folder), dtype=torch.float32)
    require_loadable(str(folder))


def test_a_tensor_of_another_shape(folder):
    set_config(folder, intermediate_size=48)
    assert "12 tensors have another shape in the files than config.json gives" in refused(folder)


def test_an_expert_that_is_absent(tmp_path):
    config = Qwen3MoeConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=32,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        pad_token_id=0,
    )
    Qwen3MoeForCausalLM(config).save_pretrained(tmp_path)
    load_model(str(tmp_path), dtype=torch.float32)
    change(tmp_path, lambda name: None if ".experts.3.up_proj" in name else name)
    with pytest.raises(DataError, match="experts"):
        load_model(str(tmp_path), dtype=torch.float32)


def split(folder: Path) -> list[Path]:
    """The same weights in several files with an index."""
    model = load_model(str(folder), dtype=torch.float32)
    shutil.rmtree(folder)
    model.save_pretrained(folder, max_shard_size="40KB")
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 2
    return files


def test_a_missing_file_of_several_is_named(folder):
    files = split(folder)
    load_model(str(folder), dtype=torch.float32)
    files[1].unlink()
    assert f"of which {files[1].name} is not there" in refused(folder)


def test_files_of_several_without_an_index(folder):
    split(folder)
    (folder / "model.safetensors.index.json").unlink()
    assert "but neither model.safetensors nor model.safetensors.index.json" in refused(folder)


def test_an_index_of_half_of_the_files(folder):
    split(folder)
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    first = min(content["weight_map"].values())
    content["weight_map"] = {name: file for name, file in content["weight_map"].items() if file == first}
    index.write_text(json.dumps(content))
    assert "in no file and would start from random numbers" in refused(folder)


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"weight_map": {}}', '{"weight_map": {"a": "../other.safetensors"}}']
)
def test_a_damaged_index(folder, content):
    split(folder)
    (folder / "model.safetensors.index.json").write_text(content)
    assert "model.safetensors.index.json cannot be read" in refused(folder)


def test_two_sets_of_weights(folder):
    whole = (folder / WEIGHTS).read_bytes()
    split(folder)
    (folder / WEIGHTS).write_bytes(whole)
    assert "holds two sets of weights" in refused(folder)


@pytest.mark.parametrize("size", [0, 5, 200, -1])
def test_a_file_that_was_cut_off(folder, size):
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:size])
    assert WEIGHTS in refused(folder)


def test_pickles_are_not_read(folder):
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    assert "as pickles only (pytorch_model.bin)" in refused(folder)


def test_an_adapter_is_no_model(folder):
    (folder / WEIGHTS).unlink()
    (folder / "adapter_config.json").write_text("{}")
    assert "is an adapter, not a model" in refused(folder)


def test_a_padding_token_without_a_row(folder):
    set_config(folder, pad_token_id=260)
    assert "`pad_token_id` in config.json is 260, but `vocab_size` is 260" in refused(folder)


def test_a_weight_that_its_class_lets_be_absent_is_looked_at(tmp_path, monkeypatch):
    pico_llama(tied=False).save_pretrained(tmp_path)
    change(tmp_path, lambda name: None if name == "lm_head.weight" else name)
    monkeypatch.setattr("transformers.LlamaForCausalLM._keys_to_ignore_on_load_missing", [r"lm_head\.weight"])
    with pytest.raises(DataError, match=r"1 tensor of LlamaForCausalLM is in no file .*lm_head.weight"):
        load_model(str(tmp_path), dtype=torch.float32)


def test_a_head_behind_a_longer_prefix_is_read(tmp_path):
    model = pico_llama(tied=False)
    head = {"lm_head.weight", "model.embed_tokens.weight"}
    require_nothing_random(model, {f"language_model.{name}" for name in head}, "m")
    model.config.tie_word_embeddings = True
    with pytest.raises(DataError, match="lm_head.weight"):
        require_nothing_random(model, {"model.embed_tokens.weight"}, "m")


def test_head_and_embedding_that_differ_stay_apart_and_the_configuration_says_so(tmp_path, caplog):
    pico_llama(tied=False).save_pretrained(tmp_path)
    set_config(tmp_path, tie_word_embeddings=True)
    with caplog.at_level(logging.WARNING, logger="collegium"):
        model = load_model(str(tmp_path), dtype=torch.float32)
    assert "the files hold both; they stay apart" in caplog.text
    assert model.config.tie_word_embeddings is False
    assert torch.equal(model.lm_head.weight, load_file(tmp_path / WEIGHTS)["lm_head.weight"])


def test_what_transformers_warns_of_is_said(tmp_path, caplog, monkeypatch):
    pico_llama().save_pretrained(tmp_path)
    original = type(pico_llama()).tie_weights

    def warning(self, *args, **kwargs):
        logging.getLogger("transformers.modeling_utils").warning("a thing\nto know")
        return original(self, *args, **kwargs)

    monkeypatch.setattr("transformers.LlamaForCausalLM.tie_weights", warning)
    with caplog.at_level(logging.WARNING, logger="collegium"):
        load_model(str(tmp_path), dtype=torch.float32)
    assert "a thing to know" in caplog.text
