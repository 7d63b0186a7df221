"""PEFT adapters are read whole, fit their base, and leave it as it is for other teachers."""

import copy
import json
import logging
import shutil

import pytest
import torch
from peft import (
    BOFTConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file

from collegium.assembly.weights import require_teacher_weights
from collegium.base.errors import DataError, TeacherError
from collegium.models.adapter_config import other_base, read_adapter_config
from collegium.models.adapters import put_adapter
from collegium.models.loading import require_loadable
from collegium.models.pretrained import load_model
from collegium.recipe.sections.models import LocalTeacherSection
from collegium.teachers.local import SharedBase
from tests.support.pico import pico_llama


TOKENS = torch.arange(12)[None] % 50
QV = ["q_proj", "v_proj"]
LORA = {"task_type": "CAUSAL_LM", "r": 4, "target_modules": QV}

ACCEPTED = {
    "lora": LoraConfig(**LORA),
    "dora": LoraConfig(**LORA, use_dora=True),
    "lora of all": LoraConfig(**LORA | {"target_modules": "all-linear"}, use_rslora=True),
    "lora with a head": LoraConfig(**LORA, modules_to_save=["lm_head"]),
    "lora of embeddings": LoraConfig(**LORA | {"target_modules": [*QV, "embed_tokens"]}),
    "lora with tokens": LoraConfig(**LORA, trainable_token_indices=[3, 4]),
    "loha": LoHaConfig(**LORA),
    "lokr": LoKrConfig(**LORA),
    "ia3": IA3Config(
        task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]
    ),
    "oft": OFTConfig(task_type="CAUSAL_LM", target_modules=QV, oft_block_size=4),
    "boft": BOFTConfig(task_type="CAUSAL_LM", target_modules=QV, boft_block_size=4),
}

REFUSED = {
    "PROMPT_TUNING": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "PREFIX_TUNING": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "VERA": VeraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"]),
    "bias: all": LoraConfig(**LORA, bias="all"),
    "bias: lora_only": LoraConfig(**LORA, bias="lora_only"),
    "init_lora_weights: pissa": LoraConfig(**LORA, init_lora_weights="pissa"),
    "init_lora_weights: olora": LoraConfig(**LORA, init_lora_weights="olora"),
}


@pytest.fixture
def base(tmp_path):
    pico_llama().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def loaded(folder):
    return load_model(str(folder), dtype=torch.float32)


def adapter(base, config, folder, *, seed=1):
    """A trained adapter on disk, and its logits."""
    torch.manual_seed(seed)
    model = get_peft_model(loaded(base), copy.deepcopy(config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
        model.save_pretrained(folder)
        return model(TOKENS).logits


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("config", ACCEPTED.values(), ids=ACCEPTED)
def test_two_adapters_and_their_base_give_what_each_gives_alone(config, base, tmp_path):
    logits = {f"adapter_{i}": adapter(base, config, tmp_path / f"adapter_{i}", seed=i) for i in (1, 2)}
    shared = SharedBase(loaded(base))
    with torch.no_grad():
        logits[None] = shared.model(TOKENS).logits
        for name in ("adapter_1", "adapter_2"):
            shared.add_adapter(str(tmp_path / name), name)
        for name in ("adapter_2", None, "adapter_1", None, "adapter_2"):
            shared.select(name)
            assert torch.equal(shared.model(TOKENS).logits, logits[name])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("reason", "config"), REFUSED.items(), ids=REFUSED)
def test_what_cannot_share_a_base_is_refused_by_name(reason, config, base, tmp_path):
    adapter(base, config, tmp_path / "adapter")
    with pytest.raises(DataError, match=f"{reason}.*merge_and_unload"):
        put_adapter(loaded(base), str(tmp_path / "adapter"), "adapter_0")


def change(folder, renamed):
    weights = load_file(folder / "adapter_model.safetensors")
    changed = {renamed(name): tensor for name, tensor in weights.items()}
    save_file({n: t for n, t in changed.items() if n is not None}, folder / "adapter_model.safetensors")


@pytest.mark.parametrize("is_second", [False, True], ids=["first", "second"])
@pytest.mark.parametrize("on_meta", [False, True], ids=["weights", "headers"])
@pytest.mark.parametrize(
    ("renamed", "reason"),
    [
        (lambda name: name.replace("model.layers", "language_model.layers"), "have no place on this model"),
        (
            lambda name: name.replace(".1.self_attn.q_proj.lora_B", ".7.self_attn.q_proj.lora_B"),
            "1 of its weights",
        ),
        (lambda name: None if "layers.1" in name else name, "4 of its weights on this model are not in its file"),
        (lambda name: name.replace("q_proj", "k_proj"), "4 weights in its file have no place"),
    ],
)
def test_names_that_do_not_fit(renamed, reason, on_meta, is_second, base, tmp_path):
    model = require_loadable(str(base)) if on_meta else loaded(base)
    if is_second:
        adapter(base, LoraConfig(**LORA), tmp_path / "first")
        model = put_adapter(model, str(tmp_path / "first"), "adapter_0")
    adapter(base, LoraConfig(**LORA), tmp_path / "adapter")
    change(tmp_path / "adapter", renamed)
    with pytest.raises(DataError, match=f"adapter .*{reason}.*give the model that it was made for"):
        put_adapter(model, str(tmp_path / "adapter"), "adapter_1")


@pytest.mark.parametrize(("sizes", "reason"), [({"width": 64}, "has the shape"), ({"layers": 3}, "have no place")])
def test_an_adapter_of_another_model(sizes, reason, base, tmp_path):
    pico_llama(**sizes).save_pretrained(tmp_path / "other")
    adapter(tmp_path / "other", LoraConfig(**LORA), tmp_path / "adapter")
    for model in (loaded(base), require_loadable(str(base))):
        with pytest.raises(DataError, match=reason):
            put_adapter(model, str(tmp_path / "adapter"), "adapter_0")


def test_an_adapter_without_such_layers(base, tmp_path):
    adapter(base, LoraConfig(**LORA), tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"target_modules": ["query_key_value"]}))
    with pytest.raises(DataError, match="does not fit the model .*query_key_value"):
        put_adapter(loaded(base), str(tmp_path / "adapter"), "adapter_0")


def test_weights_of_the_base_in_an_adapter(base, tmp_path):
    """PEFT saves embeddings that it adapts; as they were they are harmless, changed ones are others' too."""
    adapter(base, ACCEPTED["lora of embeddings"], tmp_path / "adapter")
    put_adapter(loaded(base), str(tmp_path / "adapter"), "adapter_0")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    weights = load_file(path)
    (name,) = [name for name in weights if name.endswith("embed_tokens.base_layer.weight")]
    save_file(weights | {name: weights[name] + 1}, path)
    with pytest.raises(DataError, match=r"other values for model.embed_tokens.weight, a weight of the base"):
        put_adapter(loaded(base), str(tmp_path / "adapter"), "adapter_0")


@pytest.mark.parametrize("content", [None, "{", "{}", "[]"])
def test_a_folder_that_is_no_adapter(content, tmp_path):
    if content is not None:
        (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(DataError, match=r"adapter_config.json cannot be read .* a PEFT adapter"):
        read_adapter_config(str(tmp_path))


def test_an_adapter_whose_weights_are_absent(base, tmp_path):
    adapter(base, LoraConfig(**LORA), tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(DataError, match=r"its weights cannot be read .*adapter_model.safetensors"):
        put_adapter(loaded(base), str(tmp_path / "adapter"), "adapter_0")


def test_another_base_is_named_once(base, tmp_path, caplog):
    adapter(base, LoraConfig(**LORA), tmp_path / "adapter")
    config = read_adapter_config(str(tmp_path / "adapter"))
    shutil.copytree(base, tmp_path / "other")
    assert other_base(config, str(base)) is None
    assert "was made for" in (other_base(config, str(tmp_path / "other")) or "")
    shutil.rmtree(base)
    assert other_base(config, "org/base") is None, "a model that was moved keeps the end of its name"
    section = LocalTeacherSection(name="t", model=str(tmp_path / "other"), adapter=str(tmp_path / "adapter"))
    with caplog.at_level(logging.WARNING, logger="collegium"):
        require_teacher_weights([section])
        require_teacher_weights([section])
    assert caplog.text.count("was made for") == 1


def test_teachers_that_do_not_fit_are_named_before_any_work(base, tmp_path):
    adapter(base, LoraConfig(**LORA), tmp_path / "adapter")
    change(tmp_path / "adapter", lambda name: f"x.{name}")
    sections = [
        LocalTeacherSection(name="plain", model=str(base)),
        LocalTeacherSection(name="tuned", model=str(base), adapter=str(tmp_path / "adapter")),
    ]
    with pytest.raises(TeacherError, match=r"^teacher 'tuned': adapter .* have no place on this model"):
        require_teacher_weights(sections)
