"""The README's Python example runs as it stands, with pico models in place of the hub's."""

import re
from pathlib import Path

import pytest

from tests.support.pico import TEXTS


def test_python_example(tmp_path, model_folder, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    for seed, name in enumerate(("SmolLM2-135M", "SmolLM2-360M", "SmolLM2-1.7B")):
        folder = model_folder(name, seed)
        assert f'"HuggingFaceTB/{name}"' in code
        code = code.replace(f'"HuggingFaceTB/{name}"', repr(str(folder)))
    code = code.replace("max_steps=100", "max_steps=2, use_cpu=True, report_to=[]").replace("1024", "32")
    rows = [{"text": line} for line in TEXTS]
    names = {"train_rows": rows, "web_rows": rows[:4], "legal_rows": rows[4:8]}
    namespace: dict = dict(names)
    exec(compile(code, "README.md", "exec"), namespace)
    assert namespace["trainer"].state.global_step == 2
    assert (tmp_path / "student" / "model.safetensors").exists()
    assert "eval_legal/nll" in capsys.readouterr().out


def test_public_names_are_there():
    import collegium

    for name in collegium.__all__:
        assert getattr(collegium, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'Distiller'"):
        collegium.Distiller  # noqa: B018
