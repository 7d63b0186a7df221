"""`collegium export` as a user meets it."""

import json
import shutil
import sys

import pytest

from collegium.cli.app import main
from collegium.recipe.file import dump_recipe, load_recipe
from tests.support.runs import write_recipe


pytest.importorskip("gguf", reason="needs gguf: pip install 'collegium[export]'")


@pytest.fixture
def run_dir(student, tmp_path, monkeypatch):
    """A finished run of that student, on the text of two small files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLLEGIUM_CACHE", str(tmp_path / "cache"))
    recipe = load_recipe(write_recipe(tmp_path / "files", lambda name, seed: student.folder))
    run_dir = tmp_path / "runs" / "pico"
    run_dir.mkdir(parents=True)
    (run_dir / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    shutil.copytree(student.folder, run_dir / "student")
    return run_dir


@pytest.fixture
def export(monkeypatch, capsys):
    """Runs the command; exit code, stdout and stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["collegium", "export", *map(str, arguments)])
        try:
            code = main()
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        return code, *capsys.readouterr()

    return run


def test_a_run_becomes_a_gguf_file(run_dir, export):
    code, out, err = export(run_dir, "--to", "gguf", "--tokens", "100", "--json")
    assert code == 0, err
    result = json.loads(out)
    folder = run_dir / "export" / "gguf"
    assert {path.name for path in folder.iterdir()} == {"model.gguf", "Modelfile", "export.json"}
    written = json.loads((folder / "export.json").read_text())
    assert result == {**written, "output": str(folder)}
    assert written["recipe"] == load_recipe(run_dir / "recipe.yaml").fingerprint and written["run"] == "pico"
    assert written["parity"]["positions"] == 100 and written["parity"]["top1_agreement"] >= 0.99

    code, _, err = export(run_dir, "--to", "gguf")
    assert code == 65 and "is there already; delete it, or give another folder with --output" in err

    other = run_dir.parent / "other"
    code, out, err = export(run_dir, "--to", "gguf", "--tokens", "50", "--output", other)
    assert code == 0 and "same most probable token" in out and (other / "Modelfile").exists()


def test_what_is_not_there_is_told(run_dir, export, tmp_path):
    assert export(run_dir, "--to", "pdf")[0] == 2
    assert "give one of gguf, onnx, safetensors-int8" in export(run_dir, "--to", "pdf")[2]
    code, _, err = export(tmp_path / "nowhere", "--to", "gguf")
    assert code == 65 and "holds no `recipe.yaml`; give the folder of a finished run" in err
    shutil.rmtree(run_dir / "student")
    code, _, err = export(run_dir, "--to", "gguf")
    assert code == 65 and "holds no `student` folder" in err and "collegium train" in err
    assert not (run_dir / "export").exists()


def test_a_refusal_ends_with_65_and_says_what_to_do(run_dir, export, monkeypatch):
    import collegium.export.gguf_file as gguf_file

    monkeypatch.setattr(gguf_file, "_side_by_side", lambda tensor, num_heads: tensor)  # rotary pairs as they were
    code, _, err = export(run_dir, "--to", "gguf", "--tokens", "200")
    assert code == 65 and "nothing was published" in err and "--min-agreement 0." in err
    assert list((run_dir / "export").iterdir()) == []
