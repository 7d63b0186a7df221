import importlib.util

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from collegium.base.errors import DataError
from collegium.export.formats import FORMATS
from collegium.export.gguf_reader import logits_of
from collegium.export.onnx_graph import write_onnx
from collegium.export.parity import measure_parity


missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(missing), reason=f"needs {missing}: pip install 'collegium[export]'")

ONNX = FORMATS["onnx"]


@pytest.fixture(scope="module")
def folder(student, tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    ONNX.write(student, folder)
    return folder


def test_read_by_onnxruntime_through_its_cache(folder, student, segments):
    reader, logits = ONNX.read(folder, 64)
    assert reader.startswith("onnxruntime ")
    parity = measure_parity(segments, logits_of(student.model), logits, vocab_size=420)
    assert parity.top1_agreement == 1.0 and parity.max_kl < 1e-6
    assert {path.name for path in folder.iterdir()} >= {"model.onnx", "config.json", "tokenizer.json"}


def test_a_padded_batch_is_read_as_each_text_alone(folder, student, segments):
    """Left padding, masked, as decoders are served."""
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    assert [node.name for node in session.get_outputs()][:2] == ["logits", "present.0.key"]
    texts = [segments[0][:9], segments[1][:5]]
    length = max(map(len, texts))
    mask = np.array([[0] * (length - len(t)) + [1] * len(t) for t in texts])
    feeds = {
        "input_ids": np.array([[0] * (length - len(t)) + t for t in texts]),
        "attention_mask": mask,
        "position_ids": np.maximum(mask.cumsum(1) - 1, 0),
        **{
            f"past_key_values.{i}.{part}": np.zeros((2, 2, 0, 8), np.float32)
            for i in range(2)
            for part in ("key", "value")
        },
    }
    logits = session.run(["logits"], feeds)[0]
    for row, text in zip(logits, texts, strict=True):
        assert row[-len(text) :] == pytest.approx(logits_of(student.model)(text).numpy(), abs=1e-4)


def test_sliding_windows_are_refused(tmp_path):
    config = Qwen2Config(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=32,
        layer_types=["full_attention", "sliding_attention"],
        sliding_window=8,
        use_sliding_window=True,
    )
    with pytest.raises(DataError, match="--to onnx: Qwen2ForCausalLM keeps more than keys and values"):
        write_onnx(Qwen2ForCausalLM(config), tmp_path / "model.onnx")


def test_what_cannot_be_traced_is_told(student, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("a branch on data")

    monkeypatch.setattr(torch.onnx, "export", fail)
    message = r"--to onnx: LlamaForCausalLM cannot be traced \(RuntimeError: a branch on data\); export to gguf"
    with pytest.raises(DataError, match=message):
        write_onnx(student.model, tmp_path / "model.onnx")
