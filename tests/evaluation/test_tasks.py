"""Tasks: choices and written answers against direct computation, figures against independent ones."""

import math
import random
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from collegium.data.tasks.items import TaskItem, some_items, with_distractors
from collegium.evaluation.answers import AnswerSheet
from collegium.evaluation.task_figures import answer_f1, entity_f1, entity_token_f1, exact_match, f1, mean, rouge_l
from collegium.evaluation.tasks import (
    TaskItems,
    baselines,
    choice_figures,
    compare_results,
    measure_task,
    summarize_tasks,
)
from collegium.teachers.local import LocalTeacher
from tests.support.pico import byte_tokenizer, pico_llama


OPTIONS = {"confidence": 0.9, "num_samples": 100, "seed": 0}


def sheet(seed=0, *, add_bos=True, batch_tokens=80, **temperatures):
    model = pico_llama(seed, dtype=torch.float64)
    frozen = LocalTeacher("pico", model, vocab_size=260, fingerprint="", **temperatures)
    options = {"add_bos": add_bos, "device": torch.device("cpu"), "batch_tokens": batch_tokens}
    return model, AnswerSheet(frozen, byte_tokenizer(), **options)


def choosing(*choices, prompt="Is it so?", answer=0):
    return TaskItem.choosing(prompt, choices, answer, key=prompt)


def writing(reference, prompt="What?"):
    return TaskItem.writing(prompt, reference, key=prompt)


def ids_of(text, add_bos=False):
    tokenizer = byte_tokenizer()
    return [tokenizer.bos_token_id] * add_bos + tokenizer(text, add_special_tokens=False).input_ids


@torch.no_grad()
def direct(model, prompt, choice, add_bos):
    """Of one text, in one pass and without a cache."""
    before, after = ids_of(prompt, add_bos), ids_of(choice)
    logprobs = model(torch.tensor([before + after])).logits[0].log_softmax(-1)
    return sum(float(logprobs[len(before) + i - 1, token]) for i, token in enumerate(after))


ITEMS = [
    choosing(" yes", " no", prompt="Is it?"),
    choosing(" a", " b", " c is longer", prompt="A much longer prompt, with a line feed\nAnswer:"),
    choosing("x", "y", prompt="One token each:"),
    choosing(" only one", prompt="é漢"),
]


@pytest.mark.parametrize("add_bos", [True, False])
@pytest.mark.parametrize("batch_tokens", [1, 90, 270, 4096])
def test_probability_of_choices_is_that_of_one_pass(add_bos, batch_tokens):
    model, student = sheet(add_bos=add_bos, batch_tokens=batch_tokens, target_temperature=3.0)
    found = student.choice_logprobs(ITEMS)
    for item, row in zip(ITEMS, found, strict=True):
        expected = [direct(model, item.prompt, choice, add_bos) for choice in item.choices]
        np.testing.assert_allclose(row, expected, rtol=1e-5)


@torch.no_grad()
def greedy(model, prompt, count):
    ids, tokenizer = ids_of(prompt, True), byte_tokenizer()
    written = []
    for _ in range(count):
        token = int(model(torch.tensor([ids + written])).logits[0, -1, :260].argmax())
        if token == tokenizer.eos_token_id:
            break
        written.append(token)
        if "\n" in tokenizer.decode([token]):
            break
    return tokenizer.decode(written, skip_special_tokens=True).split("\n")[0]


def test_written_answers_are_greedy_and_end():
    texts = [f"prompt {i} " + "so " * (i % 7) for i in range(24)]
    lengths = []
    for seed in range(6):
        model, student = sheet(seed)
        found = student.write([writing(" x", prompt=text) for text in texts], 12)
        assert found == [greedy(model, text, 12) for text in texts]
        lengths += [len(text.encode()) for text in found]
    assert min(lengths) < 12  # some end before: the stop is tested
    assert student.write([], 5) == []


class Scripted:
    """Writes the same bytes after any prompt."""

    name = "scripted"

    def __init__(self, tokens):
        self.tokens = tokens

    def next_tokens(self, max_new_tokens):
        self.left = iter(self.tokens[:max_new_tokens])
        return self

    def prefill(self, input_ids, attention_mask):
        self.rows = len(input_ids)
        return self.step(None)

    def step(self, tokens):
        from collegium.signals.contracts import NextToken

        logprobs = torch.nn.functional.one_hot(torch.tensor([next(self.left)] * self.rows), 260).double()
        return NextToken(logprobs, torch.zeros(self.rows))


@pytest.mark.parametrize(("written", "expected"), [(" yes\nno", " yes"), (" yes</s>no", " yes"), (" ye", " ye")])
def test_a_line_feed_or_eos_ends_an_answer(written, expected):
    tokenizer = byte_tokenizer()
    model = Scripted(tokenizer(written, add_special_tokens=False).input_ids)
    student = AnswerSheet(model, tokenizer, add_bos=False, device=torch.device("cpu"))
    assert student.write([writing(" x"), writing(" x", prompt="longer")], len(model.tokens)) == [expected] * 2


LABELS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=30)


@given(LABELS)
def test_accuracy_and_f1_of_pairs(labels):
    """Against counts of the four cells."""
    choices, answers = zip(*labels, strict=True)
    items = [choosing(" no", " yes", answer=answer) for answer in answers]
    asked = TaskItems.of("p", "paraphrase", items)
    logprobs = [np.log([0.9, 0.1][:: -1 if choice else 1]) for choice in choices]
    figures = choice_figures(asked, logprobs)
    cells = Counter(labels)
    tp, fp, fn = cells[1, 1], cells[1, 0], cells[0, 1]
    assert figures["accuracy"].value == pytest.approx((tp + cells[0, 0]) / len(labels))
    assert figures["f1"].value == pytest.approx(tp / (tp + (fp + fn) / 2) if tp + fp + fn else 0.0)


@pytest.mark.parametrize(
    ("choices", "logprobs", "chosen"),
    [
        ((" a", " a longer é"), [-2.0, -5.0], 1),  # -2 and -0.5 a character
        (
            (" ab", " éé é"),
            [-4.0, -8.1],
            0,
        ),  # -2 and -2.025 a character; a byte is -2 and -1.16, with the blank -1.33 and -1.01
        ((" a", " abc"), [-1.0, -2.9], 1),  # -1 and -0.967 without the blank; with it -0.5 and -0.725
    ],
)
def test_length_is_that_of_lm_evals_acc_norm(choices, logprobs, chosen):
    """`lls / [len(choice)]` in `lm_eval/api/task.py`, where the blank is the `target_delimiter`."""
    asked = TaskItems.of("q", "qa", [choosing(*choices, answer=chosen)])
    assert choice_figures(asked, [np.array(logprobs)])["accuracy_norm"].value == 1.0


def test_entities_by_hand():
    right = [" Obama = person; New York = location", " none", " Bob = person; Bob = person"]
    found = [" Obama = person; York = location", " Ann = person", " Bob = person"]
    # 2 of 4 found and of 4 there; of words: Obama, York and one Bob of 4 found and 5 there.
    assert entity_f1(found, right).value == pytest.approx(2 * 2 / (4 + 4))
    assert entity_token_f1(found, right).value == pytest.approx(2 * 3 / (4 + 5))
    assert entity_f1(right, right).value == 1.0
    assert entity_f1([" none"], [" none"]).value == 0.0
    assert entity_f1([" Obama person; New York = location"], right[:1]).value == pytest.approx(2 / 3)
    assert f1([["a", "a"]], [["a"]]).value == pytest.approx(2 / 3)


def test_answers_as_squad_has_them():
    assert exact_match([" The Cat!"], [" cat"]).value == 1.0
    assert exact_match([" a dog", " cats"], [" dog", " cat"]).value == 0.5
    assert answer_f1([" the big cat"], [" a cat sat"]).value == pytest.approx(2 * 1 / (2 + 2))
    assert answer_f1([" ", " the"], [" an", " cat"]).value == 0.5


def lcs(one, other):
    table = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i, a in enumerate(one):
        for j, b in enumerate(other):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


def test_rouge_l_is_the_longest_common_subsequence():
    pairs = [("big dog sat", "big red dog"), ("cat", "dog"), ("one two six", "one two six")]
    figure = rouge_l([a for a, _ in pairs], [b for _, b in pairs])
    expected = [2 * lcs(a.split(), b.split()) / (len(a.split()) + len(b.split())) for a, b in pairs]
    assert figure.statistics[:, 0] == pytest.approx(expected)
    assert figure.value == pytest.approx(sum(expected) / 3)


SUMMARIES = [writing(f" They talk of {name}.", prompt=f"dialogue {name}") for name in "abcdefgh"]


def test_distractors_do_not_depend_on_order_and_hold_the_right_answer():
    made = with_distractors(SUMMARIES)
    for item in made:
        assert len(set(item.choices)) == 4
        assert item.choices[item.answer] == item.reference
    other = with_distractors(SUMMARIES[::-1])[::-1]
    assert other == made
    assert len({item.answer for item in made}) > 1
    assert [len(item.choices) for item in with_distractors(SUMMARIES[:2])] == [2, 2]


def test_some_items_do_not_depend_on_order():
    chosen = some_items(SUMMARIES, 3)
    assert len(chosen) == 3
    assert [item for item in SUMMARIES if item in chosen] == chosen
    shuffled = random.Random(0).sample(SUMMARIES, len(SUMMARIES))
    assert set(some_items(shuffled, 3)) == set(chosen)
    assert some_items(SUMMARIES, 99) == SUMMARIES
    assert set(chosen) <= set(some_items(SUMMARIES, 4))


def test_baselines():
    items = [choosing(" no", " yes", prompt=str(i), answer=int(i < 3)) for i in range(4)]
    assert baselines(TaskItems.of("s", "sentiment", items)) == {"random": 0.5, "majority": 0.75}
    mixed = TaskItems.of("q", "qa", [choosing(" a", " b"), choosing(" c", " d", " e", " f")])
    assert baselines(mixed) == {"random": pytest.approx((1 / 2 + 1 / 4) / 2)}
    assert baselines(TaskItems.of("s", "summarization", SUMMARIES))["random"] == 0.25
    entities = TaskItems.of("n", "ner", [writing(" none"), writing(" none"), writing(" a = x")])
    assert baselines(entities) == {"majority": 0.0, "random": 0.0}


@pytest.mark.parametrize(
    ("task", "items", "figures", "primary"),
    [
        ("sentiment", ITEMS[:1], {"accuracy", "accuracy_norm"}, "accuracy"),
        ("paraphrase", ITEMS[:1], {"accuracy", "accuracy_norm", "f1"}, "accuracy"),
        ("ner", [writing(" none")], {"entity_f1", "token_f1"}, "entity_f1"),
        ("qa", ITEMS, {"accuracy", "accuracy_norm"}, "accuracy"),
        ("qa", [writing(" cat")], {"exact_match", "f1"}, "f1"),
        ("summarization", SUMMARIES, {"accuracy", "accuracy_norm", "rouge_l"}, "accuracy_norm"),
    ],
)
def test_each_task_is_measured_summarised_and_compared(task, items, figures, primary):
    asked = TaskItems.of("t", task, items, max_new_tokens=4)
    results = [measure_task(sheet(seed)[1], asked) for seed in (0, 1)]
    for result in results:
        assert set(result.figures) == figures and asked.primary == primary
        assert all(len(figure.statistics) == len(items) for figure in result.figures.values())
        assert 0.0 <= result.value <= 1.0
        assert len(result.chosen) == (len(items) if asked.has_choices else 0)
    summary = summarize_tasks(results[:1], {"teacher": results[1:]}, **OPTIONS)["t"]
    assert summary.figures.keys() == summary.teachers["teacher"].keys() == figures
    assert summary.figures[primary].value == results[0].value
    assert summary.teachers["teacher"][primary].value == results[1].value
    sums = np.array(summary.per_item).sum(0)
    assert results[0].figures[primary].score(sums) == results[0].value
    differences = compare_results(*results, **OPTIONS)
    assert differences[primary].value == pytest.approx(results[0].value - results[1].value)
    same = compare_results(results[0], results[0], **OPTIONS)[primary]
    assert same.value == 0.0 and (math.isnan(same.low) if len(items) == 1 else same.low == 0.0)


def test_mean_is_over_items():
    assert mean([1.0, 0.0, 0.5]).value == 0.5
