"""Preparations of an experiment: always the same, and teachers do not read the student's text."""

import re

import pytest
from transformers import AutoConfig, AutoTokenizer

from collegium.assembly.run import Run
from collegium.base.errors import RecipeError
from collegium.paper.experiment import plan
from collegium.paper.preparation import claim_folder, made_teachers, make_models, teacher_recipe
from collegium.paper.specification import in_folder
from collegium.paper.table1 import table1
from collegium.recipe.recipe import Recipe
from tests.support.tiny_experiment import content, specification, write_texts


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("COLLEGIUM_CACHE", str(tmp_path / "cache"))
    write_texts(tmp_path)
    return tmp_path


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_tokenizer_and_configurations_are_the_same_bytes_twice(folder):
    for name in ("a", "b"):
        make_models(specification(folder), folder / name)
    made = files(folder / "a" / "models")
    assert made == files(folder / "b" / "models")
    assert {path.parts[0] for path in made} == {"teacher", "student"}


def test_models_fit_the_tokenizer(folder):
    make_models(specification(folder), folder)
    tokenizer = AutoTokenizer.from_pretrained(folder / "models" / "student")
    config = AutoConfig.from_pretrained(folder / "models" / "student")
    assert len(tokenizer) == config.vocab_size == 300
    assert (config.eos_token_id, config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    text = "cats:\n\tnaïve 猫 </s"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_what_is_there_is_not_made_again_and_what_was_begun_is(folder):
    make_models(specification(folder), folder)
    config = folder / "models" / "student" / "config.json"
    before = config.stat().st_mtime_ns
    (folder / "models" / "teacher").rename(folder / "models" / ".teacher")  # stopped before its end
    (folder / "models" / ".teacher" / "config.json").unlink()
    make_models(specification(folder), folder)
    assert config.stat().st_mtime_ns == before
    assert (folder / "models" / "teacher" / "config.json").exists()
    assert not (folder / "models" / ".teacher").exists()


def test_only_the_characters_asked_for_are_read(folder):
    """Text beyond them changes nothing."""
    few = {"vocab_size": 280, "characters": 500}
    make_models(specification(folder, tokenizer=few), folder / "a")
    for name in ("cats", "dogs"):
        with (folder / f"{name}.txt").open("a") as file:
            file.write("\n" + "quite other words " * 200)
    make_models(specification(folder, tokenizer=few), folder / "b")
    assert files(folder / "a") == files(folder / "b")
    make_models(specification(folder, tokenizer={"vocab_size": 280, "characters": 50_000}), folder / "c")
    assert files(folder / "a") != files(folder / "c")


def documents_of(recipe):
    """Names of the documents whose beginning is trained on, and of those held out."""
    run = Run(recipe)
    text = "".join(run.tokenizer.decode(block["input_ids"]) for block in run.text.train)
    held_out = "".join(t for name in recipe.domains for t in run.text.held_out_texts(name))
    pattern = re.compile(r"(?:cats|dogs) number \d+:")
    return set(pattern.findall(text)), set(pattern.findall(held_out))


def test_no_document_of_the_student_is_trained_on_by_a_teacher(folder):
    given = specification(folder)
    make_models(given, folder)
    trained, held_out = documents_of(
        Recipe.model_validate(in_folder(plan(table1(given), given, lambda run: None).runs["ce"][0].recipe, folder))
    )
    assert len(held_out) == 8
    assert {name.split()[0] for name in trained} == {"cats", "dogs"}
    for name in ("cats", "dogs"):
        recipe = teacher_recipe(given, name, folder, folder)
        read, not_read = documents_of(recipe)
        assert {document.split()[0] for document in read} == {name}
        assert not read & (trained | held_out)
        assert not_read == {document for document in held_out if document.startswith(name)}
        assert len(read) > 20


def test_a_teacher_is_of_its_sources_seed_and_folder(folder):
    teachers = {
        "cats": {"recipe": "teacher.yaml", "sources": ["cats"]},
        "dogs": {"recipe": "teacher.yaml", "seed": 7},
        "ready": {"model": "somewhere"},
    }
    given = specification(folder, teachers=teachers)
    recipe = teacher_recipe(given, "dogs", folder, folder / "out")
    assert (recipe.name, recipe.seed, recipe.run_dir) == ("dogs", 7, folder / "out" / "teachers" / "dogs")
    assert [(s.name, s.skip_documents) for s in recipe.data.sources] == [("cats", 20), ("dogs", 20)]
    assert teacher_recipe(given, "cats", folder, folder).domains == ("cats",)
    assert teacher_recipe(given, "ready", folder, folder) is None
    assert made_teachers(given, ["ready", "dogs"]) == ["dogs"]


def test_a_teacher_may_have_sources_of_its_own(folder):
    own = "data: {sources: [{name: other, kind: files, path: cats.txt}]}\nmethod: ce\ntraining: {max_steps: 1}\n"
    (folder / "own.yaml").write_text(own + "student: {kind: config, model: OUTPUT/models/teacher}\n")
    teachers = {"cats": {"recipe": "own.yaml", "sources": []}, "dogs": {"model": "somewhere"}}
    recipe = teacher_recipe(specification(folder, teachers=teachers), "cats", folder, folder)
    assert recipe.domains == ("other",)
    assert recipe.data.sources[0].skip_documents == 0


def test_a_folder_is_of_one_specification(folder):
    given = specification(folder)
    claim_folder(given, folder, folder / "out")
    claim_folder(given, folder, folder / "out")
    claim_folder(specification(folder, learning_rates=[0.5], about="Else."), folder, folder / "out")
    more = {**content(folder)["teachers"], "third": {"model": "somewhere"}}
    claim_folder(specification(folder, teachers=more), folder, folder / "out")
    more["third"] = {"model": "elsewhere"}
    with pytest.raises(RecipeError, match=r"changed since: teachers\.third\); give another --output, or delete"):
        claim_folder(specification(folder, teachers=more), folder, folder / "out")
    with pytest.raises(RecipeError, match="changed since: tokenizer"):
        claim_folder(specification(folder, tokenizer={"vocab_size": 301}), folder, folder / "out")
    path = folder / "teacher.yaml"
    path.write_text(path.read_text().replace("max_steps: 3", "max_steps: 4"))
    with pytest.raises(RecipeError, match=r"changed since: teachers\.cats, teachers\.dogs"):
        claim_folder(given, folder, folder / "out")
