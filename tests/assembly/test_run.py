"""A run makes each part once, when it is asked for, and nothing before."""

import subprocess
import sys

import pytest
import torch

import collegium
from collegium.assembly import (
    calibration,
    continuation,
    corpus,
    generation,
    student,
    tasks,
    teachers,
    tokenizers,
    training,
)
from collegium.assembly.run import Run
from collegium.base.errors import RecipeError
from collegium.evaluation.language_modeling import HeldOut
from collegium.recipe.file import load_recipe
from collegium.training.trainer import DistillationTrainer
from tests.support.pico import pico_llama
from tests.support.runs import write_recipe
from tests.support.small_tokenizers import sentencepiece_bpe


GENERATION = "evaluation.generation={prompts: 2, prompt_tokens: 4, new_tokens: 4}"

PARTS = (
    "device",
    "tokenizer",
    "text",
    "corpus",
    "vocab_size",
    "fitted",
    "temperatures",
    "teachers",
    "rule",
    "held_out",
    "tasks",
    "prompts",
    "references",
    "past_runs",
    "student",
    "trainer",
)


@pytest.fixture
def recipe(tmp_path, model_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLLEGIUM_CACHE", str(tmp_path / "cache"))
    return write_recipe(tmp_path / "files", model_folder)


@pytest.fixture
def made(monkeypatch):
    """Names of the functions that made something, in their order."""
    calls = []

    def watch(module, name):
        plain = getattr(module, name)

        def watched(*arguments, **options):
            calls.append(name)
            return plain(*arguments, **options)

        monkeypatch.setattr(module, name, watched)

    watch(tokenizers, "student_tokenizer")
    watch(corpus, "shared_text")
    watch(calibration, "fit_recipe")
    watch(teachers, "build_teachers")
    watch(tasks, "build_tasks")
    watch(generation, "build_prompts")
    watch(generation, "build_references")
    watch(continuation, "past_runs")
    watch(training, "build_held_out")
    watch(student, "build_student")
    watch(training, "build_trainer")
    return calls


def test_a_notebook_needs_one_line(recipe):
    assert collegium.Run is Run
    run = Run.from_recipe(str(recipe), overrides=["teachers.1.name=second"], device="cpu")
    assert [teacher.name for teacher in run.teachers] == ["one", "second"]
    assert run.device == torch.device("cpu")
    assert [teacher.name for teacher in collegium.Run.from_recipe(recipe).teachers] == ["one", "two"]


def test_the_constructor_loads_nothing(recipe, made):
    code = (
        f"from collegium import Run\nrun = Run.from_recipe({str(recipe)!r}, device='cpu')\nimport sys\n"
        "print(*sorted({'torch', 'transformers', 'datasets', 'accelerate'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
    run = Run.from_recipe(recipe)
    assert made == []
    assert not (recipe.parent / "prepared").exists()
    assert [name for name in vars(run) if name in PARTS] == []


def test_each_part_is_made_once_and_is_the_same_object(recipe, tmp_path, made):
    run = Run.from_recipe(recipe, overrides=[GENERATION], folder=tmp_path / "run")
    for part in (*PARTS, *reversed(PARTS)):
        assert getattr(run, part) is getattr(run, part), part
    assert sorted(made) == sorted(set(made)) and len(made) == 11
    assert isinstance(run.held_out, HeldOut) and isinstance(run.trainer, DistillationTrainer)
    assert run.trainer.held_out is run.held_out
    assert run.trainer.distillation_model.student is run.student
    assert list(run.trainer.teachers) == list(run.teachers) == list(run.held_out.teachers)
    assert run.corpus.tokenizer is run.tokenizer and run.corpus.text is run.text


@pytest.mark.parametrize(
    ("part", "needed"),
    [
        ("tokenizer", ["student_tokenizer"]),
        ("text", ["shared_text", "student_tokenizer"]),
        ("tasks", ["build_tasks"]),
        ("past_runs", ["past_runs"]),
        ("student", ["build_student", "student_tokenizer"]),
        ("rule", []),
        ("teachers", ["build_teachers", "fit_recipe", "student_tokenizer"]),
        ("prompts", ["build_prompts", "shared_text", "student_tokenizer"]),
        ("held_out", ["build_held_out", "shared_text", "student_tokenizer", "build_teachers", "fit_recipe"]),
    ],
)
def test_only_what_a_part_needs_is_made(recipe, made, part, needed):
    run = Run.from_recipe(recipe, overrides=[GENERATION])
    getattr(run, part)
    assert made == needed


def test_parts_are_made_in_the_order_that_is_asked_for(recipe, made):
    run = Run.from_recipe(recipe)
    run.make("tasks", "text", "past_runs")
    assert made == ["build_tasks", "shared_text", "student_tokenizer", "past_runs"]
    run.make("tasks", "text", "past_runs")
    assert len(made) == 4


def test_a_derived_run_shares_the_text_and_makes_the_rest_by_its_own_recipe(recipe, made):
    run = Run.from_recipe(recipe)
    run.make("teachers", "held_out")
    del made[:]
    other = run.derive(recipe=load_recipe(recipe, ["seed=7", "teachers.1.weight_temperature=2.0"]))
    assert other.text is run.text and other.tokenizer is run.tokenizer and other.device is run.device
    assert other.teachers is not run.teachers and other.held_out is not run.held_out
    assert made == ["build_teachers", "fit_recipe", "build_held_out"]
    alone = run.derive(teachers=())
    assert alone.teachers == () and alone.recipe is run.recipe and alone.held_out.teachers == ()
    same = run.derive(teachers=run.teachers, held_out=run.held_out)
    assert same.teachers is run.teachers and same.held_out is run.held_out


def test_a_run_without_a_folder_keeps_nothing_and_is_not_trained(recipe, tmp_path):
    run = Run.from_recipe(recipe, overrides=["teachers.0.weight_temperature=fit"])
    run.make("teachers", "student")
    assert isinstance(run.fitted.teachers[0].weight_temperature, float)
    assert run.recipe.teachers[0].weight_temperature == "fit"
    assert not (tmp_path / "runs").exists()
    with pytest.raises(RecipeError, match=r"give folder=runs/pico"):
        _ = run.trainer


def test_a_finished_run_is_found_in_its_folder(recipe, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(recipe.read_text())
    run = Run.from_folder(folder)
    assert run.folder == folder and run.recipe == load_recipe(recipe)


def test_a_teachers_own_corpus_is_made_once(recipe, tmp_path, monkeypatch):
    pico_llama(5, vocab_size=max(300, len(sentencepiece_bpe()))).save_pretrained(tmp_path / "other")
    sentencepiece_bpe().save_pretrained(tmp_path / "other")
    run = Run.from_recipe(recipe, overrides=[f"teachers.1.model={tmp_path / 'other'}"])
    first, second = run.recipe.teachers
    assert run.corpus_of(first) is run.corpus
    own = run.corpus_of(second)
    assert own is not run.corpus and own.tokenizer is not run.tokenizer
    assert own.domains == run.domains
    monkeypatch.setattr(corpus, "build_text", lambda *_, **__: pytest.fail("prepared again"))
    assert run.corpus_of(second) is own
