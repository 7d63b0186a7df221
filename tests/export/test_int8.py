import importlib.util
import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from collegium.base.errors import DataError
from collegium.export.formats import FORMATS
from collegium.export.gguf_reader import logits_of
from collegium.export.parity import measure_parity


pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("torchao") is None, reason="needs torchao: pip install 'collegium[export]'"
)

INT8 = FORMATS["safetensors-int8"]


@pytest.fixture(scope="module")
def folder(student, tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8")
    INT8.write(student, folder)
    return folder


def test_linear_layers_are_bytes_on_disk_and_nothing_is_pickled(folder):
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.down_proj._weight_"
    assert weights[f"{name}qdata"].dtype == torch.int8
    assert weights[f"{name}scale"].shape == (32, 2)  # one for every 32 weights
    assert weights["model.embed_tokens.weight"].dtype == torch.float32
    assert {path.suffix for path in folder.iterdir()} <= {".safetensors", ".json", ".jinja"}
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "torchao"


def test_rounding_is_to_the_nearest_of_a_group(folder, student):
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.down_proj"
    scale = weights[f"{name}._weight_scale"].repeat_interleave(32, dim=1)
    rounded = weights[f"{name}._weight_qdata"].float() * scale
    original = student.model.get_parameter(f"{name}.weight")
    assert ((rounded - original).abs() <= scale * 0.51).all()


def test_read_anew_it_agrees(folder, student, segments):
    _, logits = INT8.read(folder, 64)
    parity = measure_parity(segments, logits_of(student.model), logits, vocab_size=420)
    assert parity.top1_agreement >= 0.99 and 0 < parity.mean_kl < 0.001


def test_the_documented_lines_load_it(folder, student):
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokens = AutoTokenizer.from_pretrained(folder)("the cat", return_tensors="pt")
    expected = student.model.generate(**tokens, max_new_tokens=4, do_sample=False)
    assert model.generate(**tokens, max_new_tokens=4, do_sample=False).tolist() == expected.tolist()


def test_a_folder_that_is_cut_short_is_told(folder, tmp_path):
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:500])
    with pytest.raises(DataError, match="safetensors-int8: what was written cannot be read back"):
        INT8.read(tmp_path, 64)
