"""Every recipe of the repository is parsed, built and stepped, with pico models in place of the real ones."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from collegium.recipe.file import load_recipe
from tests.support.command import run
from tests.support.pico import TEXTS, byte_tokenizer, pico_llama


ROOT = Path(__file__).parents[2]
RECIPES = sorted(
    [*ROOT.glob("recipes/**/*.yaml"), *ROOT.glob("src/collegium/demo/**/*.yaml")], key=lambda path: path.name
)


STAGED = ("tinybert", "mobilebert", "mgskd")
"""Methods whose second stage begins after three quarters of the run at the latest."""


def test_there_are_recipes():
    assert {path.name for path in RECIPES} >= {"c4.yaml", "cached.yaml", "paper.yaml", "recipe.yaml", "code.yaml"}


def text_of(name, folder):
    """A source of pico text, which differs from domain to domain."""
    path = folder / f"{name}.txt"
    path.write_text("\n".join(f"{name} {i}: {line} ({name})" for i, line in enumerate(TEXTS)), encoding="utf-8")
    return {"kind": "files", "name": name, "path": str(path)}


def finish_run(recipe, folder, model, monkeypatch, capsys):
    """The run in `first` that a recipe continues: its cached teachers, on the domains that they are for."""
    cached = [teacher for teacher in recipe.teachers if teacher.kind == "cached"]
    domains = dict.fromkeys(name for teacher in cached for name in teacher.domains or ())
    tree = {
        "name": "first",
        "output_dir": "first",
        "student": {"kind": "pretrained", "model": str(model)},
        "teachers": [{"name": teacher.name, "model": str(model), "cached": True} for teacher in cached],
        "cache": {"directory": "caches"},
        "data": {
            "sources": [text_of(name, folder) for name in domains or ("old",)],
            "block_size": 32,
            "held_out_documents": 3,
        },
        "objective": {"kd_weight": 0.5 if cached else 0.0},
        "training": {"max_steps": 1, "batch_size": 2},
    }
    path = folder / "first.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    for command in ["cache", "train"] if cached else ["train"]:
        code, _, err = run([command, str(path)], monkeypatch, capsys)
        assert code == 0, err


@pytest.mark.parametrize("path", RECIPES, ids=[str(path.relative_to(ROOT)) for path in RECIPES])
def test_recipe_runs(path, tmp_path, model_folder, monkeypatch, capsys):
    from peft import LoraConfig, get_peft_model

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLLEGIUM_CACHE", str(tmp_path / "cache"))
    recipe = load_recipe(path)
    model = model_folder(path.stem, 0, layers=4)
    byte_tokenizer().save_pretrained(model)
    adapter = tmp_path / "adapter"
    torch.manual_seed(0)
    tuned = get_peft_model(pico_llama(0, layers=4), LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    tuned.save_pretrained(adapter)
    sources = [text_of(source.name, tmp_path) for source in recipe.data.sources]
    by_domain = any(teacher.domains or teacher.target_domain for teacher in recipe.teachers)
    changes = {
        "data": {"sources": sources if by_domain else sources[:1], "block_size": 32, "held_out_documents": 3},
        "training.max_steps": 5 if recipe.method in STAGED else 2,
        "training.batch_size": 2,
        "training.gradient_accumulation": 1,
        "training.num_workers": 0,
        "evaluation.bootstrap_samples": 100,
    }
    if recipe.training.num_epochs is not None:
        changes["training.num_epochs"] = None
    if recipe.on_policy is not None:
        changes |= {"on_policy.prompt_length": 8, "on_policy.max_new_tokens": 8}
    if getattr(recipe.objective.feature, "kind", None) == "structure":
        changes["objective.feature.relation_heads"] = 4
    if recipe.student.kind == "layer_drop":
        kept = {"num_layers": 3} if recipe.student.keep_layers is None else {"keep_layers": [0, 3]}
        changes |= {f"student.{name}": value for name, value in kept.items()}
    if recipe.student.kind == "pruned":
        pico = {
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_heads": 2,
            "num_key_value_heads": 1,
            "num_layers": 3,
        }
        changes |= {f"student.{name}": pico[name] for name, size in recipe.student.sizes.items() if size}
    if recipe.student.kind == "continued":
        finish_run(recipe, tmp_path, model, monkeypatch, capsys)
        changes["student.run"] = "first"
    else:
        changes["student.model"] = str(model)
    if recipe.student.kind == "config":
        changes["student.overrides"] = {"num_hidden_layers": 2}
    if recipe.method == "mgskd":
        changes["objective.feature.relation_heads"] = 4
    for i, teacher in enumerate(recipe.teachers):
        if teacher.kind == "cached":
            changes[f"teachers.{i}.path"] = f"caches/{teacher.name}"
            continue
        changes[f"teachers.{i}.model"] = str(model)
        if teacher.adapter is not None:
            changes[f"teachers.{i}.adapter"] = str(adapter)
    overrides = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
    if any(teacher.kind == "local" and teacher.cached for teacher in recipe.teachers):
        code, _, err = run(["cache", str(path), *overrides], monkeypatch, capsys)
        assert code == 0, err
    code, out, err = run(["train", str(path), *overrides, "--json"], monkeypatch, capsys)
    assert code == 0, err
    assert json.loads(out)["mean"]["nll"] > 0
