"""Continuations against plain loops that read the whole text anew for every token."""

from dataclasses import dataclass, replace

import pytest
import torch

from collegium.data.blocks import pack_documents
from collegium.evaluation.generation import (
    References,
    compare_continuations,
    continue_documents,
    detokenized,
    prompts_of,
    summarize_continuations,
)
from collegium.evaluation.greedy import Writing, continuations, fused_continuations, writes_ahead
from collegium.evaluation.language_modeling import Rule
from collegium.fused.teacher_stats import target_logprobs, teacher_stats
from collegium.losses.fusion import geometric_logprobs, mixture_logprobs
from collegium.losses.joint_weighting import JointWeighting
from collegium.losses.weighting import Weighting
from collegium.signals.contracts import Batch, Capability, predicted_positions
from collegium.teachers.local import LocalTeacher
from tests.support.pico import TEXTS, VOCAB_SIZE, byte_tokenizer, pico_llama


HOW = Writing(new_tokens=8, stop_token_id=257, pad_token_id=258, vocab_size=VOCAB_SIZE, batch_size=2)
OPTIONS = {"confidence": 0.9, "num_samples": 100, "seed": 0}


def blocks_of(texts=TEXTS, block_size=32):
    return pack_documents([{"text": text} for text in texts], byte_tokenizer(), block_size=block_size)


def prompts(count=5, length=12):
    found = prompts_of(blocks_of(), count, prompt_tokens=length, new_tokens=8)
    assert found is not None
    return found


def until_stop(tokens, stop):
    return tokens[: tokens.index(stop)] if stop in tokens else tokens


def test_prompts_are_the_first_documents_long_enough_joined_over_blocks():
    texts = ["too short", TEXTS[1], "tiny", TEXTS[5], TEXTS[0]]
    found = prompts_of(blocks_of(texts), 2, prompt_tokens=20, new_tokens=30)
    tokenizer = byte_tokenizer()
    assert found.documents == (1, 3)
    assert detokenized(tokenizer, found.tokens) == [TEXTS[1][:20], TEXTS[5][:20]]  # a token is a byte
    assert detokenized(tokenizer, found.truth) == [TEXTS[1][20:50], TEXTS[5][20:50]]
    assert prompts_of(blocks_of(texts), 2, prompt_tokens=200, new_tokens=30) is None
    assert prompts_of(blocks_of(texts), 9, prompt_tokens=20, new_tokens=20).documents == (1, 3, 4)


def greedy_loop(model, prompt, how):
    tokens = prompt.tolist()
    for _ in range(how.new_tokens):
        logits = model(torch.tensor([tokens])).logits[0, -1, : how.vocab_size]
        tokens.append(int(logits.argmax()))
        if tokens[-1] == how.stop_token_id:
            break
    return until_stop(tokens[len(prompt) :], how.stop_token_id)


@torch.no_grad()
def test_a_model_writes_its_most_probable_tokens():
    model, texts = pico_llama(4), prompts().tokens
    # Whatever a model was published with must not change what is measured.
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.min_new_tokens = 6
    model.generation_config.temperature, model.generation_config.do_sample = 3.0, True
    written = continuations(model, texts, HOW)
    assert written == [greedy_loop(model, prompt, HOW) for prompt in texts]
    # A stop token is no part of the text, and ends it.
    stop = written[0][2]
    how = replace(HOW, stop_token_id=stop)
    ended = continuations(model, texts, how)
    assert ended == [greedy_loop(model, prompt, how) for prompt in texts]
    assert len(ended[0]) <= 2
    # Rows of the head that are padding are not written.
    small = replace(HOW, vocab_size=200)
    written = continuations(model, texts, small)
    assert written == [greedy_loop(model, prompt, small) for prompt in texts]
    assert max(token for row in written for token in row) < 200
    assert model.generation_config.min_new_tokens == 6


def three_teachers(broken=False):
    temperatures = [(1.4, 0.8), (0.7, 1.0), (1.0, 1.3)]
    models = [pico_llama(seed) for seed in (1, 2, 3)]
    if broken:
        models[1].lm_head.weight.data[:] = torch.nan
    return [
        LocalTeacher(
            name, model, vocab_size=VOCAB_SIZE, fingerprint=name, weight_temperature=w, target_temperature=t
        )
        for name, model, (w, t) in zip(("a", "b", "c"), models, temperatures, strict=True)
    ]


def fused_loop(teachers, rule, prompt, how, domain):
    """Scores prompt and text anew at each step, as if it were held-out text."""
    tokens = prompt.tolist()
    for _ in range(how.new_tokens):
        ids = torch.tensor([[*tokens, 7]])
        batch = Batch.of_text(ids, torch.ones_like(ids, dtype=torch.bool), torch.arange(ids.shape[1])[None])
        batch = replace(batch, domain_ids=torch.tensor([domain]))
        positions = predicted_positions(batch)
        need = frozenset({Capability.TOP_K})
        signals = [teacher.score(batch, positions, need=need).signal for teacher in teachers]
        stats = teacher_stats(signals, positions.labels, chunk_size=64)
        last = slice(len(positions) - 1, len(positions))
        weights = rule.weighting(stats, positions)[last]
        said = [target_logprobs(signal, last, stats.valid[last, m]) for m, signal in enumerate(signals)]
        tokens.append(int(rule.fusion(said, weights)[0].argmax()))
        if tokens[-1] == how.stop_token_id:
            break
    return until_stop(tokens[len(prompt) :], how.stop_token_id)


RULES = {
    "window": Rule(Weighting("entropy", "window:5", 0.05)),
    "sequence, geometric": Rule(Weighting("entropy", "sequence", 0.05), geometric_logprobs),
    "causal": Rule(Weighting("most_certain", "causal:4")),
    "bayes": Rule(Weighting("bayes", decay=0.9)),
    "mt_bert of past labels": Rule(Weighting("min_ce", "causal:4")),
    "ebkd": Rule(JointWeighting("ebkd", "sequence")),
    "static": Rule(Weighting("static", values=(0.6, 0.1, 0.3))),
    "domain": Rule(Weighting("domain", routes=(2, 1))),
}


@torch.no_grad()
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("length", [1, 12])
def test_fused_teachers_write_as_their_target_says(name, length):
    teachers, rule, texts = three_teachers(), RULES[name], prompts(3, length).tokens
    assert writes_ahead(rule)
    expected = [fused_loop(teachers, rule, prompt, HOW, 1) for prompt in texts]
    assert fused_continuations(teachers, rule, texts, HOW, domain=1) == expected
    stop = replace(HOW, stop_token_id=expected[0][3])
    ended = fused_continuations(teachers, rule, texts, stop, domain=1)
    assert ended == [fused_loop(teachers, rule, prompt, stop, 1) for prompt in texts]


@torch.no_grad()
def test_a_teacher_that_is_absent_or_broken_has_no_say():
    rule, texts = Rule(Weighting("bayes")), prompts(3).tokens
    a, b, c = three_teachers()
    without = fused_continuations([a, c], rule, texts, HOW)
    assert fused_continuations([a, b, c], rule, texts, HOW, absent={"b"}) == without
    assert fused_continuations(three_teachers(broken=True), rule, texts, HOW) == without
    assert fused_continuations([a, b, c], rule, texts, HOW) != without
    alone = fused_continuations([a], rule, texts, HOW)
    assert alone == continuations(pico_llama(1), texts, HOW)


def test_rules_that_read_the_next_token_do_not_write():
    assert not writes_ahead(Rule(Weighting("min_ce", "sequence")))
    assert not writes_ahead(Rule(JointWeighting("ca_mkd", "token")))
    assert writes_ahead(Rule(JointWeighting("ca_mkd", "causal:8")))
    assert not writes_ahead(Rule(lambda stats, positions: stats.entropy))
    assert writes_ahead(Rule(Weighting(), mixture_logprobs))


@dataclass(frozen=True)
class Setting:
    references: References
    tokenizer: object


@pytest.fixture(scope="module")
def setting():
    tokenizer, found = byte_tokenizer(), {"cats": prompts(5), "dogs": prompts(3)}
    rule = Rule(Weighting())
    texts = {
        "cats": detokenized(tokenizer, fused_continuations(three_teachers(), rule, found["cats"].tokens, HOW))
    }
    truth = {name: detokenized(tokenizer, chosen.truth) for name, chosen in found.items()}
    return Setting(References(found, truth, texts, "a, b, c"), tokenizer)


def test_one_set_of_references_serves_many_students(setting):
    teacher_like = continue_documents(pico_llama(1), setting.references, setting.tokenizer, HOW)
    other = continue_documents(pico_llama(9), setting.references, setting.tokenizer, HOW)
    summary = summarize_continuations(teacher_like, setting.references, **OPTIONS)
    assert set(summary.domains) == {"cats", "dogs", "all"}
    assert {name: row.documents for name, row in summary.domains.items()} == {"cats": 5, "dogs": 3, "all": 8}
    both = {"repetition_4", "distinct_2", "length", "bleu_reference", "chrf_reference"}
    taught = {"bleu_teacher", "chrf_teacher"}
    figures = {name: set(row.figures) for name, row in summary.domains.items()}
    assert figures == {"cats": both | taught, "dogs": both, "all": both | taught}  # nobody wrote about dogs
    assert set(summary.signatures) == {"bleu_reference", "chrf_reference"} | taught
    assert summary.teacher == "a, b, c"
    chrf = summary.domains["cats"].figures["chrf_teacher"]
    assert chrf.low <= chrf.value <= chrf.high
    difference = compare_continuations(teacher_like, other, setting.references, figure="chrf_teacher", **OPTIONS)
    assert set(difference) == {"cats", "all"}
    figures = summarize_continuations(other, setting.references, **OPTIONS).domains["cats"].figures
    assert difference["cats"].value == pytest.approx(chrf.value - figures["chrf_teacher"].value)


def test_the_writer_itself_has_full_marks(setting):
    references = replace(setting.references, truth=dict.fromkeys(("cats", "dogs"), ()), teacher={})
    written = continue_documents(pico_llama(1), references, setting.tokenizer, HOW)
    own = replace(references, truth=written.texts)
    figures = summarize_continuations(written, own, **OPTIONS).domains["all"].figures
    assert figures["chrf_reference"].value == pytest.approx(100)
    assert "bleu_teacher" not in figures
