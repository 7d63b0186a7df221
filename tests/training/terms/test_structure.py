"""The structure term on inner states, its words, and its place in an objective."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from collegium.base.schedule import Schedule
from collegium.losses.structure import (
    Relations,
    phrase_items,
    phrase_slots,
    pool,
    sample_loss,
    structure_loss,
    token_items,
)
from collegium.models.words import word_starts
from collegium.signals.inner_states import InnerLayers, InnerStates
from collegium.training.objective import Objective
from collegium.training.terms.structure import StructureTerm
from tests.support.objectives import assert_same, batch_of, counts_of, run, student_with, teachers_of
from tests.support.pico import VOCAB_SIZE, byte_tokenizer


STARTS = word_starts(byte_tokenizer(), VOCAB_SIZE)


def term_of(num_teachers=1, *, width=32, **changes):
    options = {"relation_heads": 4, "layer_map": ((0, 0), (1, 1), (2, 2))} | changes
    return StructureTerm((32, 2), [(width, 2)] * num_teachers, STARTS, **options)


def states_of(seed, width, shape):
    generator = torch.Generator().manual_seed(seed)
    hidden = {i: torch.randn(*shape, width, generator=generator, dtype=torch.float64) for i in range(3)}
    return InnerStates(hidden)


def test_words_of_bytes_begin_at_spaces_and_punctuation():
    tokenizer = byte_tokenizer()

    def begins(text):
        return STARTS[tokenizer.encode(text, add_special_tokens=False)].tolist()

    assert begins("a b") == [False, True, False]
    assert begins("f(x)\n1") == [False, True, False, True, True, False]
    assert begins("né") == [False, False, False]
    assert STARTS[tokenizer.all_special_ids].all()


def test_words_of_sentencepiece_begin_at_its_space():
    vocab = {"<s>": 0, "▁the": 1, "re": 2, "▁": 3, ",": 4, "é": 5, "漢": 6}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.decoder = decoders.Metaspace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")
    assert word_starts(fast, 9).tolist() == [True, True, False, True, True, False, False, False, False]


def test_levels_lie_on_layers_as_in_the_official_code():
    """w1 sample + w2 token + w3 phrase, the first M pairs for tokens and phrases, teachers by importance."""
    batch, term = batch_of(), term_of(2, width=48, importance=[3.0, 1.0], level_weights=(1.0, 0.5, 4.0))
    shape = batch.input_ids.shape
    student, *teachers = states_of(0, 32, shape), states_of(1, 48, shape), states_of(2, 48, shape)
    slots = phrase_slots(batch.position_ids, STARTS[batch.input_ids])
    tokens, relations = token_items(batch.position_ids, batch.attention_mask), Relations(4, 20, 20)
    phrases, expected = phrase_items(tokens, slots), 0.0
    for beta, teacher in zip((0.75, 0.25), teachers, strict=True):
        for layer in (0, 1):
            pair = student.hidden_states[layer], teacher.hidden_states[layer]
            pooled = [pool(states, batch.attention_mask, slots) for states in pair]
            expected += beta * structure_loss(*pair, tokens, relations)
            expected += beta * 0.5 * structure_loss(*pooled, phrases, relations)
        expected += beta * 4.0 * sample_loss(student.hidden_states[2], teacher.hidden_states[2], tokens, 4)
    torch.testing.assert_close(term(student, teachers, batch), expected, rtol=1e-12, atol=0)


def test_it_asks_for_the_layers_of_its_map_and_trains_nothing():
    term = term_of(2)
    assert term.student_layers == InnerLayers(frozenset({0, 1, 2}))
    assert term.teacher_layers == (term.student_layers,) * 2
    assert not list(term.parameters()) and not term.state_dict()


def test_positions_that_a_teacher_spoils_are_left_out():
    batch, term = batch_of(), term_of(lower_pairs=3)
    student, teacher = states_of(0, 32, batch.input_ids.shape), states_of(1, 32, batch.input_ids.shape)
    spoilt = {i: states.clone() for i, states in teacher.hidden_states.items()}
    spoilt[1][0, 3, 5] = torch.nan
    found = term(student, [InnerStates(spoilt)], batch)
    assert found.isfinite() and found != term(student, [teacher], batch)


def test_heads_must_divide_the_widths():
    with pytest.raises(ValueError, match=r"relation_heads is 64.*32, 48: what fits is 1, 2, 4, 8, 16"):
        StructureTerm((32, 2), [(48, 2)], STARTS)


@pytest.mark.parametrize("lower_pairs", [3, 1])
def test_micro_batches_add_up_without_samples_only(lower_pairs):
    """Tokens and phrases do not depend on how a step is cut; relations between documents do."""

    def student():
        term = term_of(2, width=48, lower_pairs=lower_pairs)
        return student_with(
            Objective(["t1", "t2"], kd_weight=0.0, feature_weight=0.5, features=[term], chunk_size=11)
        )

    teachers, counts = teachers_of(1, 2, width=48), counts_of(batch_of())
    whole = run(student(), batch_of(), teachers)
    parts = [run(student(), batch_of(range(i, i + 1)), teachers, counts) for i in range(4)]
    total = sum(part[0] for part in parts), {n: sum(p[1][n] for p in parts) for n in whole[1]}
    if lower_pairs == 3:
        assert_same(whole, total, tolerance=1e-11)
    else:
        assert not torch.allclose(whole[0], total[0], rtol=1e-6)


def test_structure_comes_first_and_logits_after_it():
    """The schedules that the method's recipe gives: one stage has nothing of the other."""

    def objective():
        return Objective(
            ["t1"],
            kd_weight=Schedule("step", 0.0, 1.0, begin=0.75),
            ce_weight=0.0,
            feature_weight=Schedule("step", 1.0, 0.0, begin=0.75),
            features=[term_of()],
            chunk_size=11,
        )

    teachers, batch = teachers_of(1), batch_of()
    alone = {
        0.5: Objective(["t1"], kd_weight=0.0, ce_weight=0.0, feature_weight=1.0, features=[term_of()]),
        0.75: Objective(["t1"], kd_weight=1.0, chunk_size=11),
    }
    for progress, expected in alone.items():
        model = student_with(objective())
        model.objective.set_progress(progress)
        assert_same(run(model, batch, teachers), run(student_with(expected), batch, teachers), tolerance=1e-12)
