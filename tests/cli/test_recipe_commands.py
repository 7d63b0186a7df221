"""`init`, `schema` and `check`: what can be said of a recipe before anything is loaded."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

from collegium.assembly.objective import build_target
from collegium.base.errors import RecipeError
from collegium.cli.completion import EXPERIMENTS, FORMATS, formats, overrides_of, starters, teachers_of
from collegium.pipeline.check import check
from collegium.pipeline.starters import SCHEMA_NAME, STARTERS, starter
from collegium.recipe.file import dump_recipe, load_recipe, parse_recipe
from collegium.recipe.schema import recipe_schema
from collegium.recipe.sections.objective import ObjectiveSection
from collegium.signals.contracts import Capability
from collegium.training.objective import Objective
from tests.support.command import Command, command
from tests.support.runs import write_recipe


ROOT = Path(__file__).parents[2]
RECIPES = [*sorted((ROOT / "recipes").rglob("*.yaml")), ROOT / "src" / "collegium" / "demo" / "recipe.yaml"]
SCHEMA = recipe_schema()
VALIDATOR = Draft202012Validator(SCHEMA)


def content_of(text: str) -> dict:
    return json.loads(json.dumps(YAML(typ="safe", pure=True).load(text)))


@pytest.fixture
def run(monkeypatch, capsys) -> Command:
    return command(monkeypatch, capsys)


@pytest.fixture
def recipe(tmp_path, model_folder, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_recipe(tmp_path / "files", model_folder)


class TestInit:
    @pytest.mark.parametrize("kind", STARTERS)
    def test_a_starter_is_a_valid_commented_recipe(self, kind, run, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        answer = run("init", "my/recipe.yaml", "--kind", kind, "--json")
        assert answer.code == 0, answer.err
        assert json.loads(answer.out) == {
            "file": "my/recipe.yaml",
            "schema": f"my/{SCHEMA_NAME}",
            "kind": kind,
        }
        text = Path("my/recipe.yaml").read_text(encoding="utf-8")
        first, *rest = text.splitlines()
        assert first == f"# yaml-language-server: $schema={SCHEMA_NAME}"
        assert sum("# " in line for line in rest) > 3, "it is commented"
        assert json.loads(Path("my", SCHEMA_NAME).read_text(encoding="utf-8")) == SCHEMA
        VALIDATOR.validate(content_of(text))
        assert load_recipe(Path("my/recipe.yaml")).name.startswith("my-")

    def test_each_kind_has_its_text_and_no_text_is_left_over(self):
        folder = ROOT / "src" / "collegium" / "pipeline" / "starter_recipes"
        assert {path.stem for path in folder.glob("*.yaml")} == set(STARTERS)
        assert len({starter(kind) for kind in STARTERS}) == len(STARTERS)

    def test_a_file_is_not_overwritten(self, run, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        Path("recipe.yaml").write_text("mine", encoding="utf-8")
        answer = run("init")
        assert answer.code == 2
        assert "recipe.yaml: exists already and is not overwritten" in answer.err
        assert Path("recipe.yaml").read_text(encoding="utf-8") == "mine"
        assert not Path(SCHEMA_NAME).exists()

    def test_an_unknown_kind_is_reported_with_the_nearest(self, run, tmp_path):
        answer = run("init", tmp_path / "recipe.yaml", "--kind", "cache")
        assert answer.code == 2
        assert "--kind cache: unknown; did you mean `cached`? Known are basic, " in answer.err
        assert not list(tmp_path.iterdir())


def wrong(**changes: object) -> dict:
    return {**content_of(starter("basic")), **changes}


class TestSchema:
    @pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
    def test_shipped_recipes_are_valid(self, path):
        VALIDATOR.validate(content_of(path.read_text(encoding="utf-8")))

    @pytest.mark.parametrize(
        "content",
        [
            wrong(nmae="x"),
            wrong(objective={"kd_wieght": 1}),
            wrong(training={"max_steps": "many"}),
            wrong(training={"max_steps": True}),
            wrong(training={"max_steps": 1, "learning_rate": 0}),
            wrong(teachers=[{"name": "a", "model": "b", "kind": "remote"}]),
            wrong(teachers=[{"name": "a", "model": "b", "pathh": "c"}]),
            wrong(objective={"divergence": "forwards"}),
            wrong(objective={"divergence": {"kind": "jsd", "alpha": 1}}),
            wrong(objective={"weighting": "papers"}),
            wrong(data={"sources": []}),
            wrong(method="distill"),
            {name: value for name, value in wrong().items() if name != "student"},
        ],
        ids=lambda content: str([v for v in content.values() if v not in wrong().values()])[:60],
    )
    def test_wrong_ones_are_refused(self, content):
        assert VALIDATOR.is_valid(wrong()) and not VALIDATOR.is_valid(content)
        with pytest.raises(RecipeError):  # the schema is no stricter than the recipe itself
            parse_recipe(json.dumps(content), Path("recipe.yaml"))

    def test_names_of_kinds_and_methods_are_taken(self):
        for objective in ({"divergence": "todi", "weighting": "paper"}, {"divergence": {"beta": 0.9}}):
            VALIDATOR.validate(wrong(method="gkd", objective=objective))
        VALIDATOR.validate(wrong(data={**wrong()["data"], "mixing": "ddk"}))

    def test_every_section_refuses_unknown_keys_and_describes_its_own(self):
        sections = {"Recipe": SCHEMA, **SCHEMA["$defs"]}
        assert len(sections) > 20
        for name, section in sections.items():
            assert section["additionalProperties"] is False, name
            for key, field in section["properties"].items():
                inner = SCHEMA["$defs"].get(field.get("$ref", "").rpartition("/")[2], {})
                assert field.get("description") or inner.get("description"), f"{name}.{key}"
        Draft202012Validator.check_schema(SCHEMA)

    def test_the_shortest_recipe_of_the_page_is_the_shortest(self):
        page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
        content = content_of(re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)[0])
        VALIDATOR.validate(content)
        parse_recipe(json.dumps(content), Path("recipe.yaml"))
        for left_out in content:
            rest = {key: value for key, value in content.items() if key != left_out}
            with pytest.raises(RecipeError):
                parse_recipe(json.dumps(rest), Path("recipe.yaml"))

    def test_it_is_printed_or_written(self, run, tmp_path):
        assert json.loads(run("schema").out) == SCHEMA
        assert run("schema", "--json").out.count("\n") == 1
        answer = run("schema", "--output", tmp_path / "new" / "schema.json", "--json")
        assert json.loads(answer.out) == {"file": str(tmp_path / "new" / "schema.json")}
        assert json.loads((tmp_path / "new" / "schema.json").read_text(encoding="utf-8")) == SCHEMA


WRONG_FILES = [
    (["data.sources.0.path=nowhere.txt"], 65, "data.sources.0.path: nowhere.txt: there is no such file"),
    (["student.model=./nowhere"], 65, "student.model: ./nowhere is not there; give the path of a model"),
    (["teachers.1.model=./nowhere.gguf"], 69, "teachers.1.model: ./nowhere.gguf is not there"),
    (["teachers.1.model=package:no_such_one/a.gguf"], 69, "package 'no_such_one' is not installed here; run"),
    (["teachers.1={kind: cached, name: far, path: nowhere}"], 69, "teachers.1.path: nowhere holds no cache"),
    (["student={kind: continued, run: runs/none}"], 65, "student.run: runs/none holds no finished run"),
    (["data.mixing=ddk", "teachers=[]", "objective.kd_weight=0"], 2, "data.mixing: ddk compares the student"),
    (
        ["teachers.0.cached=true", "cache.mode=sampled", "objective.divergence=todi"],
        69,
        "cache.mode: sampled draws of teacher 'one' serve the forward KL to a mixture only",
    ),
]


class TestCheck:
    def test_what_is_right_is_said_in_lines(self, run, recipe):
        answer = run("check", recipe, "method=ebkd")
        assert answer.code == 0, answer.err
        assert answer.err == ""
        lines = answer.out.splitlines()
        assert all(line.startswith("ok    ") for line in lines)
        assert lines[0] == "ok    recipe: valid; 2 teachers, 2 sources"
        assert lines[1] == "ok    output_dir: runs/pico is new"
        assert "ok    method: ebkd fills in what the recipe leaves out of objective.kd_weight, " in lines[2]
        assert "ok    data.sources.0.path" in answer.out and "documents are text" in answer.out
        assert not Path("runs").exists()

    def test_a_hub_id_is_never_ok_without_a_look(self, run, recipe, monkeypatch, tmp_path):
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        words = ("check", recipe, "teachers.1.model=some/hub-id")
        offline = run(*words)
        assert offline.code == 69 and "HF_HUB_OFFLINE is set, and it is not in the hub's cache" in offline.err
        monkeypatch.delenv("HF_HUB_OFFLINE")
        assert "unsure teachers.1.model: some/hub-id is not a local path" in run(*words).out
        (tmp_path / "hub/models--some--hub-id/snapshots/abc").mkdir(parents=True)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        answer = run(*words)
        assert answer.code == 0 and "unsure teachers.1.model" in answer.out and "in the hub's cache" in answer.out

    @pytest.mark.parametrize(
        ("content", "code", "message"),
        [
            (
                b'{"messages": []}',
                65,
                "none of the first 1 rows is text; look at mine.jsonl, line 1: there is no key",
            ),
            (
                b'{"text": "a"}\n{"text": 1}',
                0,
                "unsure data.sources.0.path: mine.jsonl: 1 file of jsonl; 1 of the first 2",
            ),
            (
                b'[{"text": "a"}]',
                0,
                "ok    data.sources.0.path: mine.jsonl: 1 file of json; the first 1 documents",
            ),
            (b"", 65, "the first holds no document"),
            ("text".encode("utf-16"), 65, "is UTF-16"),
            (b"PK\x03\x04", 65, "is a zip archive"),
        ],
    )
    def test_the_first_rows_of_files_are_read(self, run, recipe, content, code, message):
        Path("mine.jsonl").write_bytes(content)
        answer = run("check", recipe, "data.sources.0={kind: files, name: cats, path: mine.jsonl}")
        assert answer.code == code and message in answer.out + answer.err

    @pytest.mark.parametrize(("changes", "code", "message"), WRONG_FILES, ids=[w[0][0] for w in WRONG_FILES])
    def test_what_a_run_would_end_in(self, run, recipe, changes, code, message):
        answer = run("check", recipe, *changes)
        assert answer.code == code
        assert answer.err.startswith("collegium: ") and answer.err.count("\n") == 1
        assert message in answer.err
        assert [line for line in answer.out.splitlines() if line.startswith("fix   ")]

    @pytest.mark.parametrize(
        ("config", "code", "message"),
        [
            (
                {"model_type": "gpt2", "n_positions": 16},
                69,
                "has 16 positions (`n_positions` in config.json, it cannot",
            ),
            ({"model_type": "llama", "max_position_embeddings": 16}, 0, "data.block_size to 16 at most"),
            (
                {"model_type": "bert"},
                69,
                "models of the family 'bert' cannot be used, since its logits pass through",
            ),
            ({"model_type": "llava", "vision_config": {"a": 1}}, 69, "read more than text (`vision_config` in"),
        ],
    )
    def test_families_and_positions_by_their_configuration(self, run, recipe, tmp_path, config, code, message):
        folder = tmp_path / "family"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
        answer = run("check", recipe, f"teachers.1.model={folder}")
        assert answer.code == code
        assert message in answer.out
        assert f"fix   teachers.1.model: {folder}" in answer.out

    def test_json_holds_what_was_found_beside_the_error(self, run, recipe):
        assert json.loads(run("check", recipe, "--json").out)["ok"] is True
        answer = run("check", recipe, "data.sources.0.path=nowhere.txt", "student.model=/nowhere", "--json")
        document = json.loads(answer.out)
        assert answer.code == document["error"]["exit_code"] == 65
        assert document["error"]["message"].endswith("(and 1 more)")
        wrong_keys = [finding["key"] for finding in document["findings"] if finding["exit_code"]]
        assert document["ok"] is False and wrong_keys == ["student.model", "data.sources.0.path"]

    def test_a_folder_of_another_run(self, run, recipe):
        folder = Path("runs/pico")
        (folder / "student").mkdir(parents=True)
        (folder / "recipe.yaml").write_text(dump_recipe(load_recipe(recipe)), encoding="utf-8")
        assert "output_dir: runs/pico is of this recipe" in run("check", recipe).out
        answer = run("check", recipe, "training.max_steps=9")
        assert answer.code == 2
        assert "output_dir: runs/pico holds a run of another recipe (there and here: training.max_" in answer.err
        assert "; give another output_dir or name, or delete the folder" in answer.err

    def test_packages_that_the_recipe_needs(self, recipe, monkeypatch):
        changes = [
            "teachers.0.alignment={carry: min_ed}",
            "evaluation.generation={}",
            "training.report_to=[wandb]",
            "evaluation.tasks=[{task: summarization, path: files/cats.txt}]",
            "teachers.1={kind: cached, name: far, path: 's3://bucket/far'}",
        ]
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        found = {f.key: f for f in check(load_recipe(recipe, changes)) if f.exit_code}
        assert {key: (f.found.split()[1], f.exit_code) for key, f in found.items()} == {
            "teachers.0.alignment.carry": ("rapidfuzz", 65),
            "evaluation.generation": ("sacrebleu", 2),
            "evaluation.tasks": ("rouge_score", 2),
            "teachers.1.path": ("s3fs", 65),
            "training.report_to": ("wandb", 2),
        }
        assert found["evaluation.generation"].fix == "pip install 'collegium[eval]'"

    @pytest.mark.parametrize("fusion", ["mixture", "geometric"])
    @pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd", "todi", "decoupled", "taid"])
    def test_it_asks_of_teachers_what_the_objective_does(self, divergence, fusion):
        section = ObjectiveSection.model_validate({"divergence": divergence, "fusion": fusion})
        objective = Objective(["one"], kd_weight=0.5, target=build_target(section))
        assert section.reads_lists == (Capability.TOP_K in objective.need)


class Context:
    """The context that a shell's completion gets."""

    def __init__(self, **params: object) -> None:
        self.params = params
        self.args: list[str] = []


class TestCompletion:
    def test_experiments_are_those_that_there_are(self):
        from collegium.paper.command import EXPERIMENTS as KNOWN

        assert set(EXPERIMENTS) == set(KNOWN)

    def test_formats_are_those_that_there_are(self):
        from collegium.export.formats import FORMATS as KNOWN

        assert tuple(KNOWN) == FORMATS and formats("sa") == ["safetensors-int8"]

    def test_starters_come_with_what_they_are_for(self):
        assert starters("ca") == [("cached", STARTERS["cached"])]

    def test_keys_and_values(self):
        assert overrides_of(Context(), "training.max_s") == ["training.max_steps="]
        assert overrides_of(Context(), "method=gk") == ["method=gkd"]
        assert "objective.weighting.kind=" in overrides_of(Context(), "objective.weighting.")
        assert overrides_of(Context(), "objective.fusion=g") == ["objective.fusion=geometric"]
        assert "objective.divergence=todi" in overrides_of(Context(), "objective.divergence=t")
        assert overrides_of(Context(), "training.max_steps=") == []

    def test_bash_cuts_words_at_the_equals_sign(self):
        assert overrides_of(Context(overrides=["method", "="]), "gk") == ["gkd"]
        assert "gkd" in overrides_of(Context(overrides=["method"]), "")
        assert "method=" in overrides_of(Context(overrides=["name=x"]), "")

    def test_teachers_are_the_recipe_s(self, recipe):
        assert teachers_of(Context(recipe=recipe), "t") == ["two"]
        assert teachers_of(Context(recipe=recipe.parent / "none.yaml"), "") == []
        assert teachers_of(Context(), "") == []

    @pytest.mark.parametrize(
        ("words", "answer"),
        [
            ("collegium train files/recipe.yaml method = gk", "gkd"),
            ("collegium cache build files/recipe.yaml --teacher t", "two"),
            ("collegium reproduce ta", "table1"),
        ],
    )
    def test_a_shell_asks_and_is_answered(self, words, answer, recipe, run, monkeypatch, capsys):
        monkeypatch.setenv("_COLLEGIUM_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
        with pytest.raises(SystemExit):
            run()
        assert capsys.readouterr().out.split() == [answer]


def test_without_torch(tmp_path):
    """`init`, `schema`, `check` and every help come at once: nothing heavy is imported."""
    code = """
import sys
from typer.main import get_command
from collegium.cli.app import app, main

def called(group):
    for name, inner in group.commands.items():
        yield [name, "--help"]
        yield from ([name, *words] for words in called(inner) if hasattr(inner, "commands")) \
            if hasattr(inner, "commands") else ()

runs = [["--help"], *called(get_command(app)), ["init", "recipe.yaml"], ["check", "recipe.yaml"], ["schema"]]
for words in runs:
    sys.argv = ["collegium", *words]
    assert main() == 0, words
    heavy = {"torch", "transformers", "datasets", "numpy", "pyarrow"} & set(sys.modules)
    assert not heavy, (words, heavy)
print(len(runs), file=sys.stderr)
"""
    online = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=False, env=online)
    assert done.returncode == 0, done.stderr
    assert int(done.stderr.split()[-1]) >= 17
