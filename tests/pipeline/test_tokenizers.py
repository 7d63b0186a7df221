"""Teachers with other tokenizers than the student's, as a user meets them."""

import json
import math
import shutil
import sys
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from collegium.assembly.run import Run
from collegium.cli.app import main
from collegium.fused.teacher_stats import teacher_stats
from collegium.recipe.file import load_recipe
from collegium.recipe.recipe import Recipe
from collegium.signals.contracts import Batch, Capability, predicted_positions
from collegium.signals.signals import CarriedSignal
from collegium.teachers.aligned import align
from collegium.teachers.collect import reading_ahead
from collegium.teachers.restricted import RestrictedTeacher
from tests.support.pico import byte_tokenizer, pico_llama
from tests.support.runs import write_recipe
from tests.support.small_tokenizers import byte_level, sentencepiece_bpe, word_piece


NEED = frozenset({Capability.TOP_K})


@pytest.fixture
def recipe(tmp_path, model_folder, monkeypatch):
    """Teacher `one` has the student's tokenizer, `two` is of the Gemma kind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLLEGIUM_CACHE", str(tmp_path / "cache"))
    save_teacher(tmp_path / "other", sentencepiece_bpe())
    return str(write_recipe(tmp_path / "files", model_folder, two=str(tmp_path / "other")))


def save_teacher(folder: Path, tokenizer, seed: int = 5) -> None:
    pico_llama(seed, vocab_size=max(300, len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture
def run(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["collegium", *map(str, arguments)])
        code = main()
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def metrics_of(folder: str) -> list[dict]:
    return [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]


def test_a_run_with_a_teacher_of_another_family(recipe, run):
    code, out, err = run("train", recipe, "training.log_every=1", "--json")
    assert code == 0, err
    figures = json.loads(out)["mean"]
    assert math.isfinite(figures["nll"]) and figures["teachers"]["two"]["kl"] > 0
    step = next(line for line in metrics_of("runs/pico") if "train/teacher/two/exact_fraction" in line)
    exact, approximate = (step[f"train/teacher/two/{kind}_fraction"] for kind in ("exact", "approximate"))
    assert 0.2 < exact < 1.0 and 0.0 <= approximate <= 1.0 - exact
    assert step["train/teacher/two/weight"] > 0.05
    assert step["train/teacher/two/invalid_fraction"] == 0.0


@pytest.mark.parametrize("mode", ["hidden_states", "top_k", "sampled"])
def test_cache_in_its_own_vocabulary(recipe, run, mode):
    options = [f"cache.mode={mode}", "teachers.1.cached=true", "cache.rows_per_shard=5"]
    code, out, err = run("cache", recipe, *options, "--json")
    assert code == 0, err
    location = json.loads(out)["two"]["location"]
    assert json.loads(Path(location, "manifest.json").read_text())["teacher"]["vocab_size"] == len(
        sentencepiece_bpe()
    )
    code, out, err = run("train", recipe, *options, "--json")
    assert code == 0, err
    assert math.isfinite(json.loads(out)["mean"]["nll"])
    code, _, err = run("cache", "verify", location)
    assert code == 0, err
    victim = next(Path(location).glob("**/*.parquet"))
    victim.write_bytes(victim.read_bytes()[:-7])
    code, _, err = run("cache", "repair", location)
    assert code == 0 and "wrote" in err, err


def test_one_cache_serves_students_of_any_tokenizer(recipe, run, tmp_path):
    options = ["cache.mode=hidden_states", "teachers.1.cached=true"]
    code, out, err = run("cache", recipe, *options, "--json")
    assert code == 0, err
    first = json.loads(out)["two"]
    save_teacher(tmp_path / "student", byte_level(), seed=7)
    other = [f"student.model={tmp_path / 'student'}", "data.directory=files/prepared2", "output_dir=runs/other"]
    code, out, err = run("cache", recipe, *options, *other, "--json")
    assert code == 0, err
    again = json.loads(out)["two"]
    assert again["location"] == first["location"] or again["bytes"] == first["bytes"]
    code, out, err = run("train", recipe, *options, *other, "training.log_every=1", "--json")
    assert code == 0, err
    step = next(line for line in metrics_of("runs/other") if "train/teacher/two/exact_fraction" in line)
    assert step["train/teacher/two/exact_fraction"] > 0.1
    assert step["train/teacher/one/exact_fraction"] > 0.1


def test_the_cache_location_does_not_depend_on_the_student(recipe, run, tmp_path, monkeypatch):
    text = Path(recipe).read_text().replace(f"  directory: {tmp_path / 'files' / 'prepared'}\n", "")
    Path(recipe).write_text(text)
    options = ["cache.mode=hidden_states", "teachers.1.cached=true", "--json"]
    save_teacher(tmp_path / "student", byte_level(), seed=7)
    made = [run("cache", recipe, *options, *more) for more in ([], [f"student.model={tmp_path / 'student'}"])]
    assert [code for code, _, _ in made] == [0, 0], made
    assert json.loads(made[0][1])["two"]["location"] == json.loads(made[1][1])["two"]["location"]


def signals_of(recipe: Recipe):
    run = Run(recipe, device="cpu")
    teacher = run.teachers[1]
    blocks = run.text.train
    inputs = reading_ahead(run.collator, [teacher])([blocks[i] for i in range(len(blocks))])
    batch = Batch.from_inputs(inputs)
    positions = predicted_positions(batch)
    return teacher.score(batch, positions, need=NEED).signal, positions


def changed(recipe: str, **changes) -> Recipe:
    tree = load_recipe(Path(recipe)).model_dump(mode="json")
    for key, value in changes.items():
        *path, last = key.split("__")
        place = tree
        for name in path:
            place = place[int(name) if name.isdigit() else name]
        place[last] = value
    return Recipe.model_validate(tree)


def test_cached_and_running_agree_where_both_read_the_same_text(recipe, run):
    """Blocks that hold every document whole: the teacher begins each where the student does."""
    options = [
        "data.block_size=4096",
        "cache.mode=hidden_states",
        "teachers.1.cached=true",
        "data.directory=whole",
    ]
    code, _, err = run("cache", recipe, *options)
    assert code == 0, err
    same = {"data__block_size": 4096, "data__directory": "whole", "cache__mode": "hidden_states"}
    cached, positions = signals_of(changed(recipe, **same, teachers__1__cached=True))
    running, _ = signals_of(changed(recipe, **same))
    assert torch.equal(cached.valid, running.valid)
    valid = running.valid
    assert valid.float().mean() > 0.6
    ours, theirs = (teacher_stats([s], positions.labels, chunk_size=64) for s in (cached, running))
    assert torch.allclose(ours.entropy[valid], theirs.entropy[valid], atol=2e-2)
    assert torch.allclose(ours.cross_entropy[valid], theirs.cross_entropy[valid], atol=5e-2)


@pytest.mark.parametrize("cached", [False, True])
def test_within_domains(recipe, run, cached):
    options = ["teachers.1.domains=[dogs]", f"teachers.1.cached={str(cached).lower()}", "cache.mode=hidden_states"]
    if cached:
        code, _, err = run("cache", recipe, *options)
        assert code == 0, err
    code, out, err = run("train", recipe, *options, "--json")
    assert code == 0, err
    domains = json.loads(out)["domains"]
    assert "two" in domains["dogs"]["figures"]["teachers"] and "two" not in domains["cats"]["figures"]["teachers"]


def direct_and_aligned(recipe: str, student: PreTrainedTokenizerFast):
    """Signals of one teacher, asked directly and through the aligned path by a student with this tokenizer."""
    plain = changed(recipe, teachers__1__model=load_recipe(Path(recipe)).teachers[0].model)
    run = Run(plain, device="cpu")
    teacher = run.teachers[1]
    batch = Batch.from_inputs(run.collator([run.text.train[i] for i in range(4)]))
    positions = predicted_positions(batch)
    through = align(teacher, student, byte_tokenizer())
    return *(t.score(batch, positions, need=NEED).signal for t in (teacher, through)), slice(0, len(positions))


def test_the_same_tokenizer_through_the_aligned_path_is_the_direct_path(recipe):
    direct, aligned, rows = direct_and_aligned(recipe, byte_tokenizer())
    assert torch.equal(direct.logits(rows), aligned.logits(rows))
    assert aligned.valid is None


def test_the_same_tokens_with_another_special_one_are_exact_everywhere(recipe):
    """As of a base model and its instruct version: planned and carried, with the direct path's result."""
    direct, aligned, rows = direct_and_aligned(recipe, byte_tokenizer(extra=("<new>",)))
    assert isinstance(aligned, CarriedSignal)
    assert bool(aligned.valid.all()) and bool(aligned.exact.all())
    theirs, ours = direct.logits(rows), aligned.logits(rows)
    text = slice(0, 256)  # of special tokens, some have no counterpart
    gap = theirs[:, text].log_softmax(-1) - ours[:, text].log_softmax(-1)
    assert gap.abs().max() < 1e-5


def test_a_tokenizer_that_loses_text_is_refused(recipe, run, tmp_path):
    save_teacher(tmp_path / "pieces", word_piece())
    code, _, err = run("train", recipe, f"teachers.1.model={tmp_path / 'pieces'}")
    assert code == 69
    assert "teacher 'two'" in err and "WordPiece" in err


def test_lists_serve_temperature_one(recipe, run):
    options = ["cache.mode=top_k", "teachers.1.cached=true", "objective.kd_temperature=2"]
    code, _, err = run("cache", recipe, *options)
    assert code == 2
    assert "objective.kd_temperature is 2.0" in err and "keep hidden states" in err


def test_fitted_temperatures_of_an_aligned_teacher(recipe, run):
    code, _, err = run("train", recipe, "teachers.1.weight_temperature=fit", "--json")
    assert code == 0, err
    fitted = json.loads(Path("runs/pico/temperatures.json").read_text())["two"]["weight_temperature"]
    assert 0.2 < fitted["temperature"] < 5.0 and fitted["positions"] > 0


def test_span_entropy(recipe, run):
    code, out, err = run("train", recipe, "teachers.1.alignment.entropy=span", "--json")
    assert code == 0, err
    assert math.isfinite(json.loads(out)["mean"]["nll"])


def test_a_cache_made_elsewhere_names_its_tokenizer(recipe, run, tmp_path):
    options = ["cache.mode=hidden_states", "teachers.1.cached=true"]
    code, out, err = run("cache", recipe, *options, "--json")
    assert code == 0, err
    shutil.move(json.loads(out)["two"]["location"], tmp_path / "given")
    tree = load_recipe(Path(recipe)).model_dump(mode="json")
    elsewhere = {"name": "two", "kind": "cached", "path": str(tmp_path / "given")}
    for tokenizer, expected in ((None, 65), (str(tmp_path / "other"), 0)):
        given = elsewhere if tokenizer is None else {**elsewhere, "tokenizer": tokenizer}
        changed_tree = {**tree, "teachers": [tree["teachers"][0], given]}
        path = tmp_path / "elsewhere.json.yaml"
        path.write_text(json.dumps(changed_tree), encoding="utf-8")
        code, _, err = run("train", path)
        assert code == expected, err
        if tokenizer is None:
            assert "name the teacher's `tokenizer`" in err


def test_restricted_teachers_read_ahead(recipe):
    restricted = changed(recipe, teachers__1__domains=["dogs"])
    run = Run(restricted, device="cpu")
    teacher = run.teachers[1]
    assert isinstance(teacher, RestrictedTeacher) and teacher.reads_ahead
    rows = [run.text.train[i] for i in range(len(run.text.train))]
    inputs = reading_ahead(run.collator, [teacher])(rows)
    ahead, plain = Batch.from_inputs(inputs), Batch.from_inputs(run.collator(rows))
    positions = predicted_positions(plain)
    one, two = (teacher.score(batch, positions, need=NEED).signal for batch in (ahead, plain))
    assert torch.equal(one.valid, two.valid)
    assert torch.equal(one.logits(slice(0, 9)), two.logits(slice(0, 9)))
    parts = torch.cat([two.logits(slice(i, min(i + 7, len(positions)))) for i in range(0, len(positions), 7)])
    whole = two.logits(slice(0, len(positions)))
    assert torch.allclose(parts[two.valid], whole[two.valid], atol=1e-5)
