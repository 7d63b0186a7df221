"""`fit` in a recipe: fitted once on training text, kept, reported, and the same for caches and runs."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from collegium.assembly.run import Run
from collegium.base.errors import RecipeError
from collegium.recipe.file import load_recipe
from collegium.signals.contracts import Batch, predicted_positions
from tests.support.command import run
from tests.support.pico import pico_llama
from tests.support.runs import packed, write_recipe


FIT = ["teachers.0.weight_temperature=fit", "teachers.0.target_temperature=fit", "teachers.0.target_domain=cats"]


@pytest.fixture(scope="module")
def learned(model_folder) -> Path:
    """A model that has seen a little text: the best temperature of a random one is beyond the bounds."""
    folder = model_folder("learned", 1)
    model, blocks = pico_llama(1).train(), packed()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    tokens = torch.tensor([blocks[i]["input_ids"] for i in range(8)])
    for _ in range(15):
        optimizer.zero_grad()
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def recipe(tmp_path, model_folder, learned, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLLEGIUM_CACHE", str(tmp_path / "cache"))
    return write_recipe(tmp_path / "files", model_folder, one=learned)


def test_temperatures_are_fitted_kept_and_used(recipe, tmp_path, monkeypatch, capsys):
    code, out, err = run(["train", str(recipe), *FIT, "--json"], monkeypatch, capsys)
    assert code == 0, err
    path = tmp_path / "runs" / "pico" / "temperatures.json"
    kept = json.loads(path.read_text())["one"]
    weight, target = kept["weight_temperature"], kept["target_temperature"]
    assert weight["nll"] == pytest.approx(weight["entropy"], abs=1e-5) and not weight["at_bound"]
    assert weight["nll"] <= weight["raw_nll"] and target["nll"] <= target["raw_nll"]
    assert weight["temperature"] != target["temperature"] and weight["positions"] > target["positions"]

    # With those numbers in the recipe the run is the same.
    numbers = [f"teachers.0.{key}={fit['temperature']}" for key, fit in kept.items()]
    code, again, err = run(["train", str(recipe), *numbers, "output_dir=numbers", "--json"], monkeypatch, capsys)
    assert code == 0, err
    assert json.loads(again)["mean"]["nll"] == json.loads(out)["mean"]["nll"]

    # A run that goes on reads its own.
    tree = json.loads(path.read_text())
    tree["one"]["weight_temperature"]["temperature"] = 3.0
    del tree["sha256"]
    path.write_text(json.dumps(tree))
    resumed = Run.from_recipe(recipe, overrides=FIT, folder=path.parent).fitted
    assert resumed.teachers[0].weight_temperature == 3.0

    code, out, _ = run(["preflight", str(recipe), *FIT, "--json"], monkeypatch, capsys)
    assert json.loads(out)["temperatures"]["one"]["weight_temperature"] == weight
    code, out, _ = run(["preflight", str(recipe), *FIT], monkeypatch, capsys)
    assert "Temperatures, fitted on training text" in out and f"{weight['temperature']:.3f}" in out


def test_the_fit_is_the_best_temperature_on_training_blocks(recipe, learned):
    """Against a plain search, on the blocks that are said to be used."""
    fitting = Run.from_recipe(recipe, overrides=[*FIT, "calibration.blocks=2"])
    temperatures = fitting.temperatures
    train = fitting.text.train
    chosen = {}
    for domain in ("cats", "dogs"):
        rows = [row for row in (train[i] for i in range(len(train))) if row["domain"] == domain]
        chosen[domain] = [rows[i * len(rows) // 2] for i in range(2)]
    model = AutoModelForCausalLM.from_pretrained(learned)
    for key, domains in (("weight_temperature", ("cats", "dogs")), ("target_temperature", ("cats",))):
        logits, labels = [], []
        for domain in domains:
            for row in chosen[domain]:
                batch = Batch.from_inputs(fitting.collator([row]))
                positions = predicted_positions(batch)
                with torch.no_grad():
                    out = model(batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits[0]
                logits.append(out[positions.index].double())
                labels.append(positions.labels)
        z, y = torch.cat(logits), torch.cat(labels)
        grid = torch.linspace(-1.6, 1.6, 3201, dtype=torch.float64).exp()
        losses = [float(torch.nn.functional.cross_entropy(z / c, y)) for c in grid]
        fitted = temperatures["one"][key]
        assert fitted.positions == len(y)
        assert fitted.temperature == pytest.approx(float(grid[min(range(3201), key=losses.__getitem__)]), rel=2e-3)


@pytest.mark.parametrize("mode", ["top_k", "hidden_states"])
def test_caches_are_made_at_and_read_with_the_fitted_numbers(mode, recipe, tmp_path, monkeypatch, capsys):
    cached = [*FIT, "teachers.0.cached=true", f"cache.mode={mode}", "cache.min_probability=1e-7"]
    cached += ["cache.max_kept=260", "cache.directory=caches"]
    code, out, err = run(["cache", str(recipe), *cached, "--json"], monkeypatch, capsys)
    assert code == 0, err
    settings = json.loads(out)["one"]["settings"]
    code, out, err = run(["train", str(recipe), *cached, "--json"], monkeypatch, capsys)
    assert code == 0, err
    kept = json.loads((tmp_path / "runs" / "pico" / "temperatures.json").read_text())["one"]
    made_at = kept["weight_temperature"]["temperature"] if mode == "top_k" else 1.0
    assert settings["weight_temperature"] == made_at
    code, online, err = run(["train", str(recipe), *FIT, "output_dir=online", "--json"], monkeypatch, capsys)
    assert code == 0, err
    assert json.loads(out)["mean"]["nll"] == pytest.approx(json.loads(online)["mean"]["nll"], rel=5e-3)

    # Elsewhere, where the fit is not known, lists in the recipe's folder say what they were made at.
    if mode == "top_k":
        monkeypatch.setenv("COLLEGIUM_CACHE", str(tmp_path / "other"))
        loaded = load_recipe(recipe, cached)
        resolved = Run(loaded).fitted
        assert resolved.teachers[0].weight_temperature == made_at
        given = replace_teacher(loaded, {"kind": "cached", "name": "one", "path": "caches/one"})
        with pytest.raises(RecipeError, match=r"serve only the temperatures .* instead of `fit`"):
            _ = Run(given).fitted


def replace_teacher(recipe, section):
    tree = recipe.model_dump()
    section |= {"weight_temperature": "fit"}
    return type(recipe).model_validate({**tree, "teachers": (section, *tree["teachers"][1:])})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["teachers.0.target_domain=cats"], "`target_domain` is for `target_temperature: fit` only"),
        (["teachers.0.weight_temperature=0"], "greater than 0"),
        (["teachers.0.weight_temperature=fitted"], "weight_temperature"),
        (["teachers.0.domains=[birds]"], r"for domains ['birds'], the sources are ['cats', 'dogs']"),
        ([*FIT, "teachers.0.domains=[dogs]"], "has target_domain 'cats', its domains are ['dogs']"),
    ],
)
def test_mistakes_are_told(changes, message, recipe, monkeypatch, capsys):
    code, _, err = run(["train", str(recipe), *changes], monkeypatch, capsys)
    assert code == 2
    assert message in err


def test_restricted_teachers_in_a_run(recipe, monkeypatch, capsys):
    changes = ["teachers.0.domains=[cats]", "teachers.1.domains=[dogs]", "teachers.0.weight_temperature=fit"]
    code, out, err = run(["train", str(recipe), *changes, "--json"], monkeypatch, capsys)
    assert code == 0, err
    domains = json.loads(out)["domains"]
    cats, dogs = (domains[name]["figures"]["teachers"] for name in ("cats", "dogs"))
    assert "one" in cats and "one" not in dogs
    assert json.loads(out)["mean"]["teachers"]["one"]["kl"] == cats["one"]["kl"]["value"]
    code, out, err = run(["train", str(recipe), *changes], monkeypatch, capsys)
    assert code == 0 and "teacher/two/kl" in out
    code, out, err = run(["preflight", str(recipe), *changes, "--json"], monkeypatch, capsys)
    assert code == 0, err
    report = json.loads(out)
    assert report["rules"]["uniform"]["cats"] == pytest.approx(report["teachers"]["one"]["cats"], rel=1e-5)
    code, _, err = run(
        ["train", str(recipe), *changes, "objective.feature_weight=0.1", "output_dir=x"], monkeypatch, capsys
    )
    assert code != 0 and "feature_weight" in err


@pytest.mark.parametrize("mode", ["top_k", "hidden_states"])
def test_a_restricted_teacher_is_cached_for_its_domains(mode, recipe, tmp_path, monkeypatch, capsys):
    changes = [
        "teachers.0.domains=[cats]",
        "teachers.0.cached=true",
        f"cache.mode={mode}",
        "cache.directory=caches",
    ]
    code, out, err = run(["cache", str(recipe), *changes, "--json"], monkeypatch, capsys)
    assert code == 0, err
    text = Run.from_recipe(recipe).text
    train = text.train
    cats = sum(train[i]["domain"] == "cats" for i in range(len(train)))
    assert json.loads(out)["one"]["blocks"] == cats + len(text.held_out["cats"])
    code, _, err = run(["train", str(recipe), *changes], monkeypatch, capsys)
    assert code == 0, err
    code, _, err = run(["cache", "verify", "caches/one"], monkeypatch, capsys)
    assert code == 0, err
    if mode == "top_k":
        code, _, err = run(["cache", "export", "caches/one", "one.parquet"], monkeypatch, capsys)
        assert code == 0 and f"{cats} blocks" in err
