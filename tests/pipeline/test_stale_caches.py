"""A cache of a teacher that has other settings by now is refused, and it is said which."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from collegium.assembly.cache import _say_unknown
from collegium.cache.manifest import Manifest
from collegium.models.settings import adapter_settings
from collegium.pipeline.stale_caches import stale_cache
from collegium.recipe.sections.models import LocalTeacherSection
from tests.support.command import run
from tests.support.pico import pico_llama
from tests.support.runs import write_recipe


ROPE = ("one/config.json", "rope_parameters.rope_theta", 500_000.0)
ALPHA = ("adapter/adapter_config.json", "lora_alpha", 64)
NEUTRAL = {
    "one/config.json": {
        "transformers_version": "9",
        "eos_token_id": 1,
        "attention_dropout": 0.5,
        "use_cache": False,
    },
    "adapter/adapter_config.json": {
        "base_model_name_or_path": "elsewhere",
        "lora_dropout": 0.5,
        "peft_version": "9",
    },
}


@pytest.fixture
def recipe(tmp_path, model_folder, monkeypatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLLEGIUM_CACHE", str(tmp_path / "cache"))
    path = write_recipe(tmp_path / "files", model_folder)
    model_folder("one", 1).rename(tmp_path / "one")
    torch.manual_seed(3)
    lora = LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    get_peft_model(pico_llama(1), lora).save_pretrained(tmp_path / "adapter")
    return [str(path), "teachers.0={name: one, model: ./one, adapter: ./adapter, cached: true}"]


def edit(file: str, changes: dict[str, object]) -> None:
    path = Path(file)
    content = json.loads(path.read_text())
    for name, value in changes.items():
        inner = content
        *outer, last = name.split(".")
        for key in outer:
            inner = inner[key]
        inner[last] = value
    path.write_text(json.dumps(content))


@pytest.fixture
def command(monkeypatch, capsys):
    return lambda *arguments: run(list(arguments), monkeypatch, capsys)


def test_a_cache_in_a_folder_of_the_recipe_is_refused_by_every_command(recipe, command):
    own = [*recipe, "cache.directory=caches"]
    assert command("cache", *own)[0] == 0
    assert command("train", *own)[0] == 0
    for (file, key, value), before in ((ROPE, "10000.0"), (ALPHA, "4")):
        whole = Path(file).read_text()
        edit(file, {key: value})
        named = f"{Path(file).name}: {key} {before}, now {value}"
        for call in (
            ["check", *own],
            ["doctor", *own],
            ["cache", *own],
            ["train", *own, "output_dir=other"],
            ["evaluate", "runs/pico"],
        ):
            code, out, err = command(*call)
            assert code == 65, (call, err)
            assert named in out + err, call
        Path(file).write_text(whole)
    assert command("check", *own)[0] == 0


def test_in_the_default_folder_another_one_is_made_and_until_then_it_is_said(recipe, command):
    assert command("cache", *recipe)[0] == 0
    file, key, value = ALPHA
    edit(file, {key: value})
    named = "adapter_config.json: lora_alpha 4, now 64"
    code, out, err = command("check", *recipe)
    assert code == 0, err
    assert f"{named}; run `collegium cache RECIPE`, which makes one of it as it is now" in out
    code, _, err = command("train", *recipe)
    assert code == 65
    assert f"(`cached: true`), and the one that is there is with {named}: run `collegium cache RECIPE`" in err
    assert named in command("doctor", *recipe)[1]
    assert command("cache", *recipe)[0] == 0
    assert len(list(Path("cache/teachers").iterdir())) == 2
    assert command("train", *recipe)[0] == 0


def test_what_decides_no_number_changes_no_cache(recipe, command, monkeypatch):
    assert command("cache", *recipe)[0] == 0
    for file, changes in NEUTRAL.items():
        edit(file, changes)
    modules = json.loads(Path("adapter/adapter_config.json").read_text())["target_modules"]
    edit("adapter/adapter_config.json", {"target_modules": modules[::-1]})  # a set of PEFT's, in any order
    monkeypatch.setattr("collegium.assembly.cache.load_teachers", lambda *_, **__: pytest.fail("loaded again"))
    assert command("cache", *recipe)[0] == 0
    assert len(list(Path("cache/teachers").iterdir())) == 1


@pytest.mark.parametrize("directory", [[], ["cache.directory=caches"]])
def test_a_cache_of_an_earlier_version_is_read_and_it_is_said_what_is_not_known(
    recipe, command, monkeypatch, directory
):
    own = [*recipe, *directory]
    with monkeypatch.context() as earlier:
        earlier.setattr("collegium.assembly.cache.settings_of", lambda _: None)
        code, out, _ = command("cache", *own, "cache.rows_per_shard=5", "--json")
    place = Path(json.loads(out)["one"]["location"])
    content = (place / "manifest.json").read_bytes()
    assert json.loads(content)["schema"] == 1
    assert "settings" not in json.loads(content)["teacher"]
    sentence = "is of an earlier version, which kept a hash of the weights but not the settings in config.json"
    _say_unknown.cache_clear()  # it is said once in a process
    code, _, err = command("cache", *own, "cache.rows_per_shard=5")
    assert code == 0, err
    assert sentence in err
    code, _, err = command("train", *own, "cache.rows_per_shard=5")
    assert code == 0, err
    assert (place / "manifest.json").read_bytes() == content
    shard = next((place / "shards").iterdir())
    shard.write_bytes(shard.read_bytes()[:-5])
    (place / "manifest.json").unlink()
    assert command("cache", "repair", str(place))[0] == 0
    assert (place / "manifest.json").read_bytes() == content
    assert command("check", *own)[0] == 0


def test_a_cache_that_an_earlier_version_began_is_finished_as_it_was_begun(recipe, command, monkeypatch):
    own = [*recipe, "cache.directory=caches", "cache.rows_per_shard=2"]
    scored: list[int] = []
    with monkeypatch.context() as earlier:
        earlier.setattr("collegium.assembly.cache.settings_of", lambda _: None)
        earlier.setattr("collegium.cache.builder.write_shard", lambda *_, **__: scored.append(1) or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            command("cache", *own)
    assert scored
    assert command("cache", *own)[0] == 0
    assert Manifest.from_bytes(Path("caches/one/manifest.json").read_bytes()).is_earlier


@pytest.mark.parametrize("name", ["manifest.json", "begun.json"])
def test_an_adapter_over_a_model_on_the_hub_is_compared_without_the_hub(tmp_path, name):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 4}))
    section = LocalTeacherSection(name="one", model="org/base", adapter=str(adapter), cached=True)
    teacher = {"model": "org/base", "settings": adapter_settings(str(adapter))}
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / name).write_text(json.dumps({"teacher": teacher}))
    assert stale_cache(section, str(tmp_path)) is None
    edit(str(adapter / "adapter_config.json"), {"lora_alpha": 8})
    stale = stale_cache(section, str(tmp_path))
    assert stale is not None
    assert stale.found == "a cache was made with adapter_config.json: lora_alpha 4, now 8"
    assert stale_cache(section.model_copy(update={"adapter": "org/adapter"}), str(tmp_path)) is None
