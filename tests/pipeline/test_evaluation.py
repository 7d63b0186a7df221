"""What `train` and `evaluate` write of texts and tasks, from the command line."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.command import run
from tests.support.runs import write_recipe


GENERATION = "evaluation.generation={prompts: 2, prompt_tokens: 10, new_tokens: 6}"


@pytest.fixture
def recipe(tmp_path, model_folder, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLLEGIUM_CACHE", str(tmp_path / "cache"))
    return write_recipe(tmp_path / "files", model_folder)


def test_continuations_of_a_run(recipe, tmp_path, monkeypatch, capsys):
    code, out, err = run(["train", str(recipe), GENERATION, "--json"], monkeypatch, capsys)
    assert code == 0, err
    trained = json.loads(out)["generation"]
    assert trained["teacher"] == "one, two, fused by the recipe's rule"
    assert (trained["prompt_tokens"], trained["new_tokens"]) == (10, 6)
    assert {name: row["documents"] for name, row in trained["domains"].items()} == {"cats": 2, "dogs": 2, "all": 4}
    figures = trained["domains"]["all"]["figures"]
    overlaps = {f"{name}_{whose}" for name in ("bleu", "chrf") for whose in ("reference", "teacher")}
    assert set(figures) == {"repetition_4", "distinct_2", "length"} | overlaps
    assert set(trained["signatures"]) == overlaps
    signature = "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:"
    assert trained["signatures"]["bleu_teacher"].startswith(signature)

    sample = trained["samples"]["dogs"]
    assert set(sample) == {"prompt", "document", "teachers", "student"}
    assert (len(sample["prompt"]), len(sample["document"])) == (10, 6) and sample["prompt"].startswith("dogs say ")

    code, out, _ = run(["evaluate", "runs/pico", "--json"], monkeypatch, capsys)
    assert code == 0
    assert json.loads(out)["generation"] == trained  # greedy, and the student is the one that was saved
    code, out, _ = run(["evaluate", "runs/pico"], monkeypatch, capsys)
    assert "Greedy continuations: 6 tokens after 10 of 4 documents" in out and "bleu_teacher" in out
    assert "kl/own (not for ranking)" in out and "teacher/one/kl (not for ranking)" in out
    assert "kl/common (not" not in out


def test_a_student_that_is_its_only_teacher_writes_what_it_writes(recipe, model_folder, monkeypatch, capsys):
    both = model_folder("both", 3)
    changes = [f"teachers=[{{name: one, model: {both}}}]", f"student.model={both}", "training.max_steps=1"]
    slow = "training.learning_rate=1e-12"
    code, out, err = run(["train", str(recipe), GENERATION, *changes, slow, "--json"], monkeypatch, capsys)
    assert code == 0, err
    figures = json.loads(out)["generation"]["domains"]["all"]["figures"]
    assert figures["chrf_teacher"]["value"] == pytest.approx(100)
    assert figures["chrf_reference"]["value"] < 50


def test_who_cannot_write_is_said(recipe, monkeypatch, capsys):
    def reason_of(*changes: str) -> str:
        code, out, err = run(["train", str(recipe), GENERATION, *changes, "--json"], monkeypatch, capsys)
        assert code == 0, err
        generation = json.loads(out)["generation"]
        assert "bleu_reference" in generation["domains"]["all"]["figures"]
        assert "bleu_teacher" not in generation["domains"]["all"]["figures"]
        assert "teachers" not in generation["samples"]["cats"]
        return generation["teacher"]

    plain = ["name=plain", "teachers=[]", "objective.kd_weight=0"]
    assert reason_of(*plain).startswith("left out: the recipe has no teachers")
    by_label = ["name=labels", "objective.weighting={kind: min_ce, granularity: token}"]
    assert reason_of(*by_label) == "left out: the rule's weights follow the token that is to be written"
    assert "no rule that fuses them" in reason_of("name=norm", "objective.weighting=min_norm")
    run(["cache", str(recipe), "teachers.1.cached=true"], monkeypatch, capsys)
    assert "teacher 'two' knows stored text only" in reason_of("name=cached", "teachers.1.cached=true")


def test_teachers_write_in_their_own_domains_only(recipe, monkeypatch, capsys):
    changes = ["name=own", "teachers.0.domains=[cats]", "teachers.1.domains=[cats]", GENERATION]
    code, out, err = run(["train", str(recipe), *changes, "--json"], monkeypatch, capsys)
    assert code == 0, err
    domains = json.loads(out)["generation"]["domains"]
    assert "bleu_teacher" in domains["cats"]["figures"] and "bleu_teacher" not in domains["dogs"]["figures"]


def test_documents_that_are_too_short_are_said(recipe, monkeypatch, capsys):
    long = "evaluation.generation={prompt_tokens: 400, new_tokens: 6}"
    code, _, err = run(["train", str(recipe), long, "--json"], monkeypatch, capsys)
    assert code == 65
    assert "no held-out document has 406 tokens (prompt_tokens + new_tokens)" in err
    assert not Path("runs/pico/student").exists()  # said before training


def test_sacrebleu_that_is_not_installed_is_said_before_training(recipe, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    code, _, err = run(["train", str(recipe), GENERATION], monkeypatch, capsys)
    assert code == 2 and "pip install 'collegium[eval]'" in err
    assert not Path("runs/pico/student").exists()


def test_lm_eval_that_is_not_installed_is_said_before_any_work(recipe, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    run(["train", str(recipe), "--json"], monkeypatch, capsys)
    code, _, err = run(["evaluate", "runs/pico", "--lm-eval", "sst2"], monkeypatch, capsys)
    assert code == 2 and "pip install 'collegium[eval]'" in err


QUESTIONS = [
    {"question": "the cat sat on the", "choices": [" mat", " moon landing"], "answer": 0},
    {"question": "the dog looked back at the", "choices": [" numbers", " cat", " hill"], "answer": 1},
    {"question": "short", "choices": [" one", " two"], "answer": 0},
]

TASK = """
task: two_choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
target_delimiter: ""
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
metadata: {{version: 3}}
"""


@torch.no_grad()
def loglikelihood(model, tokenizer, context: str, choice: str) -> float:
    """Of a choice behind its question, token by token."""
    before, ids = tokenizer.encode(context), tokenizer.encode(context + choice)
    logprobs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(float(logprobs[t - 1, ids[t]]) for t in range(len(before), len(ids)))


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs lm-eval: collegium[eval]")
def test_a_task_of_lm_eval(recipe, tmp_path, monkeypatch, capsys):
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    data = tasks / "questions.jsonl"
    data.write_text("\n".join(json.dumps(question) for question in QUESTIONS))
    (tasks / "two_choices.yaml").write_text(TASK.format(data=data))
    run(["train", str(recipe), "--json"], monkeypatch, capsys)
    options = ["--lm-eval", "two_choices", "--include-path", str(tasks), "--num-fewshot", "0"]
    code, out, err = run(["evaluate", "runs/pico", *options, "--json"], monkeypatch, capsys)
    assert code == 0, err
    found = json.loads(out)["lm_eval"]  # nothing else is printed
    assert found == json.loads(Path("runs/pico/evaluation.json").read_text())["lm_eval"]
    assert found["details"]["versions"] == {"two_choices": 3} and found["lm_eval_version"]

    model = AutoModelForCausalLM.from_pretrained("runs/pico/student")
    tokenizer = AutoTokenizer.from_pretrained("runs/pico/student")
    right = [0, 0]
    for question in QUESTIONS:
        scores = [loglikelihood(model, tokenizer, question["question"], c) for c in question["choices"]]
        normed = [score / len(c) for score, c in zip(scores, question["choices"], strict=True)]
        for kind, values in enumerate((scores, normed)):
            right[kind] += values.index(max(values)) == question["answer"]
    scores = found["results"]["two_choices"]
    assert scores["acc,none"] == pytest.approx(right[0] / 3)
    assert scores["acc_norm,none"] == pytest.approx(right[1] / 3)

    code, _, err = run(["evaluate", "runs/pico", "--lm-eval", "no_such_task"], monkeypatch, capsys)
    assert code == 2 and "knows no task no_such_task" in err


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs lm-eval: collegium[eval]")
def test_loglikelihoods_of_lm_eval_are_those_of_the_model(model_folder):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    folder = model_folder("subject", 5)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    pairs = [(question["question"], choice) for question in QUESTIONS for choice in question["choices"]]
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    found = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3, device="cpu").loglikelihood(requests)
    assert [score for score, _ in found] == pytest.approx(
        [loglikelihood(model, tokenizer, *pair) for pair in pairs], rel=1e-4
    )
