"""Families of models: those in the tables are used rightly, and the others are refused in a sentence."""

import copy
import json
import re
from pathlib import Path

import pytest
import torch
from transformers import Qwen2VLConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from collegium.base.errors import DataError, RecipeError, UserError
from collegium.models.config_file import read_config_file
from collegium.models.families import (
    ACCEPTED,
    ONE_BY_ONE,
    POSITIONS,
    REFUSED,
    positions_of,
    require_usable,
)
from collegium.models.head import ProjectionHead
from collegium.models.layer_settings import keep_in_config
from collegium.models.pretrained import (
    last_hidden_states,
    load_model,
    model_from_config,
    reads_documents_alone,
)
from collegium.models.probe import BlockShape, check_model
from collegium.models.student import keep_layers
from tests.support.families import NUM_LAYERS, tiny_config, tiny_model


PAGE = Path(__file__).parents[2] / "docs" / "families.md"

NOT_MADE = {
    "bailing_hybrid",
    "cohere_compass_text",
    "dbrx",
    "dots3_note",
    "gemma3n",
    "qwen4_exp",
    "qwen4_exp_text",
    "zamba",
}
"""Families of which no tiny model could be made here; they are tried when they are loaded, as any other."""

USED = sorted(ACCEPTED | ONE_BY_ONE)


def test_every_family_of_transformers_is_in_one_list():
    lists = [ACCEPTED, ONE_BY_ONE, set(REFUSED), NOT_MADE]
    assert set().union(*lists) == set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    assert sum(len(families) for families in lists) == len(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def test_the_page_lists_the_same_families():
    parts = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]
    listed = {part.splitlines()[0]: set(re.findall(r"`([a-z0-9_-]+)`", part)) for part in parts}
    assert listed["Packed"] == ACCEPTED
    assert listed["One document a row"] == ONE_BY_ONE
    assert listed["Refused"] == set(REFUSED)
    assert listed["Not tried"] == NOT_MADE
    reasons = PAGE.read_text()
    assert all(reason in reasons for reason in REFUSED.values())
    for families in (ACCEPTED, ONE_BY_ONE, REFUSED):
        assert f"{len(families)} families" in reasons


@pytest.mark.parametrize("family", sorted(REFUSED))
def test_refused_families_say_why(family):
    with pytest.raises(DataError, match=re.escape(f"x: models of the family {family!r} cannot be used, since ")):
        require_usable({"model_type": family}, "x")


def test_models_of_pictures_are_refused_before_transformers_is_asked(tmp_path):
    config = Qwen2VLConfig()
    config.save_pretrained(tmp_path)
    found = read_config_file(str(tmp_path))
    with pytest.raises(DataError, match=r"'qwen2_vl' read more than text \(`vision_config` in config.json\)"):
        require_usable(found, "x")
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    with pytest.raises(DataError, match="read more than text"):
        load_model(str(tmp_path), dtype=torch.float32)


def test_models_of_pictures_that_read_text_alone_are_accepted():
    require_usable({"model_type": "gemma3", "vision_config": {"hidden_size": 8}}, "x")
    require_usable({"model_type": "an unknown one"}, "x")


def test_weights_under_another_name_are_refused():
    with pytest.raises(DataError, match="transformers_weights: mine.safetensors"):
        require_usable({"model_type": "llama", "transformers_weights": "mine.safetensors"}, "x")


@pytest.mark.parametrize(
    ("config", "number", "is_table"),
    [
        ({"model_type": "gpt2", "n_positions": 1024}, 1024, True),
        ({"model_type": "opt", "max_position_embeddings": 2048}, 2048, True),
        ({"model_type": "llama", "max_position_embeddings": 2048, "rope_theta": 1e4}, 2048, False),
        (
            {
                "model_type": "llama",
                "max_position_embeddings": 4096,
                "rope_scaling": {"type": "linear", "factor": 4.0},
            },
            16384,
            False,
        ),
        (
            {
                "model_type": "qwen2",
                "max_position_embeddings": 32768,
                "rope_parameters": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 32768,
                },
            },
            131072,
            False,
        ),
        (
            {
                "model_type": "llama",
                "max_position_embeddings": 131072,
                "rope_parameters": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "original_max_position_embeddings": 8192,
                },
            },
            131072,
            False,
        ),
        (
            {
                "model_type": "gemma3",
                "text_config": {
                    "model_type": "gemma3_text",
                    "max_position_embeddings": 1000,
                    "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0}},
                },
            },
            8000,
            False,
        ),
    ],
)
def test_positions_by_the_configuration(config, number, is_table):
    positions = positions_of(config)
    assert (positions.number, positions.is_table) == (number, is_table)
    assert positions.too_few("x", number) is None
    assert f"x has {number:,} positions" in positions.too_few("x", number + 1)


@pytest.mark.parametrize("config", [{"model_type": "mamba"}, {"model_type": "bloom"}, {}, {"model_type": "gpt2"}])
def test_models_without_a_limit(config):
    assert positions_of(config) is None


@pytest.mark.parametrize("family", ["gpt2", "gptj", "opt"])
def test_tables_of_positions_are_refused_before_they_are_read(family):
    model = tiny_model(family)
    check_model(model, 90, name="t", shape=BlockShape(2, 128))
    with pytest.raises(DataError, match="t has 128 positions .* but blocks have 129 tokens; set data.block_size"):
        check_model(model, 90, name="t", shape=BlockShape(2, 129))


def test_rotary_models_warn_beyond_their_positions(caplog):
    model = tiny_model("llama")
    check_model(model, 90, name="rotary", shape=BlockShape(2, 128))
    assert "positions" not in caplog.text
    check_model(model, 90, name="rotary", shape=BlockShape(2, 130))
    assert "rotary has 128 positions (`max_position_embeddings` in config.json" in caplog.text


def test_settings_of_single_layers_follow():
    config = tiny_config("gemma4_text")
    assert sorted(config._heterogeneity_spec.per_layer_overrides) == [3]
    config.num_kv_shared_layers = 0
    keep_in_config(config, [1, 3])
    assert sorted(config._heterogeneity_spec.per_layer_overrides) == [1]
    assert config.to_dict()["per_layer_config"].keys() == {"1"}


def test_an_embedding_with_parts_of_all_layers_is_no_description_of_some():
    with pytest.raises(RecipeError, match="embed_tokens_per_layer"):
        keep_layers(tiny_model("gemma3n_text"), [0, 1])


@pytest.mark.parametrize("number", [1, 2, 3, 6, 8])
def test_kinds_of_gpt_neos_layers_follow_their_number(number, tmp_path):
    tiny_config("gpt_neo").save_pretrained(tmp_path)
    model = model_from_config(str(tmp_path), overrides={"num_hidden_layers": number}, dtype=torch.float32, seed=0)
    assert len(model.transformer.h) == number == len(model.config.attention_layers)
    model.save_pretrained(tmp_path / "made")
    assert load_model(str(tmp_path / "made"), dtype=torch.float32).config.num_layers == number


@pytest.mark.slow
@pytest.mark.parametrize("family", USED)
@torch.no_grad()
def test_a_family_says_of_documents_in_a_batch_what_transformers_says_of_them_alone(family):
    model = tiny_model(family)
    plain = copy.deepcopy(model)
    check_model(model, 90, name=family, shape=BlockShape(3, 96))
    assert reads_documents_alone(model) == (family in ONE_BY_ONE)
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in ([30, 66], [50, 20, 26])])
    tokens = torch.randint(3, 90, positions.shape, generator=torch.Generator().manual_seed(1))
    logits = ProjectionHead.from_model(model, 90)(last_hidden_states(model, tokens, positions))
    for place in ((0, slice(0, 30)), (0, slice(30, 96)), (1, slice(50, 70)), (1, slice(70, 96))):
        alone = plain(input_ids=tokens[place][None], use_cache=False).logits[0, :, :90]
        assert (logits[place] - alone).abs().max() < 2e-3 * alone.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(REFUSED.keys() - {"musicgen", "musicgen_melody"} - {"reformer"}))
def test_a_refused_family_is_refused_by_the_probe_too(family):
    try:
        model = tiny_model(family)
    except Exception:
        return  # it cannot even be made
    with pytest.raises(DataError):
        check_model(model, 90, name=family, shape=BlockShape(3, 96))


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(POSITIONS.keys() & (ACCEPTED | ONE_BY_ONE)))
@torch.no_grad()
def test_a_table_of_positions_has_an_end(family):
    model = tiny_model(family)
    number = positions_of(model.config.to_dict()).number
    model(input_ids=torch.full((1, number), 5), use_cache=False)
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, number + 1), 5), use_cache=False)


@pytest.mark.slow
@pytest.mark.parametrize("kept", [[0, 2], [1, 3], None], ids=["0,2", "1,3", "by config"])
@pytest.mark.parametrize("family", USED)
@torch.no_grad()
def test_fewer_layers_are_right_or_refused(family, kept, tmp_path):
    model = tiny_model(family)
    tokens = torch.arange(3, 40)[None]
    try:
        if kept is None:
            model.config.save_pretrained(tmp_path)
            overrides = {"num_hidden_layers": NUM_LAYERS // 2}
            model = model_from_config(str(tmp_path), overrides=overrides, dtype=torch.float32, seed=0).eval()
        else:
            keep_layers(model, kept)
    except UserError as error:
        assert re.search(r"student\.|config.json", str(error)), error
        return
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())
    again = load_model(str(tmp_path), dtype=torch.float32)
    expected = model(input_ids=tokens, use_cache=False).logits
    assert torch.allclose(again(input_ids=tokens, use_cache=False).logits, expected, atol=1e-5)
