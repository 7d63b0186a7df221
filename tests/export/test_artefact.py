import errno
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from collegium.base.errors import DataError
from collegium.export.artefact import export_student, require_parity
from collegium.export.formats import Format
from collegium.export.gguf_reader import logits_of
from collegium.export.parity import Parity
from collegium.models.pretrained import load_model


def plain(change=lambda weights: None) -> Format:
    """A copy of the weights, damaged in a way."""

    def write(student, folder):
        student.model.save_pretrained(folder)
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    def read(folder, longest):
        return "a test", logits_of(load_model(str(folder), dtype=torch.float32))

    return Format("plain", (), ("safetensors",), write, read)


def perturb(weights):
    name = "model.layers.1.mlp.down_proj.weight"
    weights[name] = weights[name] + 0.5 * torch.randn_like(weights[name])


def export(student, segments, output, format_, min_agreement=0.99):
    return export_student(
        student,
        format_,
        output,
        segments=segments,
        vocab_size=420,
        min_agreement=min_agreement,
        source={"run": "small", "recipe": "abc"},
    )


def test_what_is_faithful_is_published_with_its_description(student, segments, tmp_path):
    result = export(student, segments, tmp_path / "a" / "out", plain())
    folder = tmp_path / "a" / "out"
    assert json.loads((folder / "export.json").read_text()) == result
    assert [path.name for path in folder.parent.iterdir()] == ["out"]
    assert (result["format"], result["run"], result["recipe"]) == ("plain", "small", "abc")
    parity = result["parity"]
    assert (parity["top1_agreement"], parity["reader"], parity["min_agreement"]) == (1.0, "a test", 0.99)
    assert parity["positions"] == sum(len(tokens) - 1 for tokens in segments)
    assert set(result["versions"]) == {"torch", "transformers", "safetensors"}
    sizes = sum(f.stat().st_size for f in folder.iterdir() if f.name != "export.json")
    assert result["bytes"] == sizes


def test_a_damaged_export_is_refused_and_leaves_nothing(student, segments, tmp_path):
    torch.manual_seed(0)
    with pytest.raises(DataError, match=r"read back by a test.*99\.00% is asked.*--min-agreement 0\.") as caught:
        export(student, segments, tmp_path / "out", plain(perturb))
    assert caught.value.exit_code == 65
    assert list(tmp_path.iterdir()) == []
    torch.manual_seed(0)
    result = export(student, segments, tmp_path / "out", plain(perturb), min_agreement=0.0)
    assert 0 < result["parity"]["top1_agreement"] < 0.99


def test_nan_is_refused_whatever_is_asked_for(student, segments, tmp_path):
    def spoil(weights):
        weights["model.norm.weight"][0] = torch.nan

    with pytest.raises(DataError, match="not finite"):
        export(student, segments, tmp_path / "out", plain(spoil), min_agreement=0.0)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_kept(student, segments, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match=r"out: is there already; delete it, or give another folder with --output"):
        export(student, segments, tmp_path / "out", plain())


def test_a_full_disk_leaves_nothing(student, segments, tmp_path):
    def full(_, folder):
        (folder / "half").write_text("x")
        raise OSError(errno.ENOSPC, "No space left on device", str(folder))

    with pytest.raises(OSError, match="No space left"):
        export(student, segments, tmp_path / "out", Format("plain", (), (), full, plain().read))
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_in_no_ones_way(student, segments, tmp_path):
    (tmp_path / ".out.writing").mkdir()
    (tmp_path / ".out.writing" / "half").write_text("x")
    export(student, segments, tmp_path / "out", plain())
    assert not (tmp_path / "out" / "half").exists()


def test_the_limit_that_is_suggested_passes():
    parity = Parity(0.98765, 0.01, 0.1, 1000, 10)
    with pytest.raises(DataError, match=r"--min-agreement 0\.987$"):
        require_parity(parity, 0.99, "--to x", "y")
    require_parity(parity, 0.987, "--to x", "y")
