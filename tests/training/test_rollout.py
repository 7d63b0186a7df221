"""What the student writes: from which prompts, the same in any company, and how it becomes a batch."""

import time

import pytest
import torch
from peft import LoraConfig, get_peft_model

from collegium.data.collate import BlockCollator
from collegium.losses.fusion import geometric_logprobs, mixture_logprobs
from collegium.losses.weighting import Weighting
from collegium.models.head import ProjectionHead
from collegium.models.pretrained import causal_lm_of, last_hidden_states, trunk_of
from collegium.signals.contracts import Batch, Capability, predicted_positions
from collegium.teachers.local import LocalTeacher, SharedBase
from collegium.training.rollout import Author, Sampling, evaluating, left_padded, numbers_of, prompt_of, roll_out
from tests.support.pico import pico_llama
from tests.support.runs import packed


PAD, EOS = 258, 257


def author_of(model, teachers=(), *, weighting=None, fusion=mixture_logprobs) -> Author:
    head = ProjectionHead.from_model(causal_lm_of(model), 260)
    return Author(model, trunk_of(model), head, teachers, weighting or Weighting("uniform"), fusion)


def teacher_of(seed: int, **temperatures: float) -> LocalTeacher:
    model = pico_llama(seed, dtype=torch.float64)
    return LocalTeacher(str(seed), model, vocab_size=260, fingerprint="", **temperatures)


def inputs_of(indices, *, side="right") -> dict[str, torch.Tensor]:
    blocks = packed()
    return BlockCollator(pad_token_id=PAD, padding_side=side)([blocks[i] for i in indices])


def sampling(**changes) -> Sampling:
    defaults = {"fraction": 1.0, "prompt_length": 8, "max_new_tokens": 12, "temperature": 1.0, "pad_token_id": PAD}
    return Sampling(**{**defaults, **changes})


def logprobs_of(model, ids: torch.Tensor) -> torch.Tensor:
    """Without a cache: of every next token, [S V]."""
    with torch.no_grad():
        hidden = last_hidden_states(model, ids[None], torch.arange(len(ids))[None])
        return ProjectionHead.from_model(causal_lm_of(model), 260)(hidden[0]).log_softmax(-1)


def reference(model, prompt: torch.Tensor, uniforms: torch.Tensor, temperature: float) -> list[int]:
    """A token at a time over the whole text, by the definition of a cumulative distribution."""
    ids = prompt
    for number in uniforms.tolist():
        probs = (logprobs_of(model, ids)[-1] / temperature).softmax(-1)
        ids = torch.cat([ids, (probs.cumsum(-1) <= number).sum()[None]])
    return ids[len(prompt) :].tolist()


class TestPrompts:
    def prompt(self, sizes, length, *, padding=0):
        ids = torch.arange(sum(sizes) + padding)
        positions = torch.cat([torch.arange(size) for size in (*sizes, padding)])
        return prompt_of(ids, ids < sum(sizes), positions, length).tolist()

    def test_of_the_longest_segment(self):
        assert self.prompt([3, 9, 4], 5) == [3, 4, 5, 6, 7]
        assert self.prompt([4, 4], 3) == [0, 1, 2], "the first of two that are equal"

    def test_half_of_what_is_short(self):
        assert self.prompt([3, 6], 6) == [3, 4, 5]
        assert self.prompt([1], 6) == [0]

    def test_never_padding(self):
        assert self.prompt([3], 2, padding=20) == [0, 1]


def test_numbers_depend_on_seed_step_and_sample_alone():
    options = {"seed": 3, "step": 5, "max_new_tokens": 6}
    many = numbers_of([4, 9, 2], **options)
    alone = numbers_of([9], **options)
    assert torch.equal(many.coins[1:2], alone.coins) and torch.equal(many.uniforms[1:2], alone.uniforms)
    longer = numbers_of([9], **{**options, "max_new_tokens": 8})
    assert torch.equal(longer.uniforms[:, :6], alone.uniforms)
    for change in ({"seed": 4}, {"step": 6}):
        assert not torch.equal(numbers_of([9], **{**options, **change}).uniforms, alone.uniforms)
    coins = numbers_of(range(2000), **options).coins
    assert float((coins < 0.3).double().mean()) == pytest.approx(0.3, abs=0.03)


def test_the_global_generator_is_left_alone():
    author, inputs = author_of(pico_llama(0)), inputs_of([0, 1])
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    roll_out(inputs, author, sampling(), step=0)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_cached_decoding_is_the_plain_one(temperature):
    model = pico_llama(0, dtype=torch.float64)
    prompts = [torch.arange(5), torch.arange(40, 51), torch.tensor([7])]
    uniforms = torch.rand(3, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    how = sampling(max_new_tokens=10, temperature=temperature)
    written = author_of(model).write(prompts, uniforms, how)
    for row, prompt in enumerate(prompts):
        assert written.tokens[row].tolist() == reference(model, prompt, uniforms[row], temperature)
        ids = torch.cat([prompt, written.tokens[row]])
        expected = logprobs_of(model, ids)[len(prompt) - 1 : -1].gather(-1, written.tokens[row][:, None])[:, 0]
        assert torch.allclose(written.student_logprobs[row], expected, atol=1e-10), "at temperature 1 always"
        if temperature == 1.0:
            assert torch.equal(written.student_logprobs, written.sampled_logprobs)
    assert written.mask.all()


def test_a_rollout_is_the_same_in_any_company():
    author = author_of(pico_llama(0, dtype=torch.float64), [teacher_of(1)])
    how = sampling(teacher_share=0.3, stop_token_id=EOS)

    def texts(indices, side="right"):
        result = roll_out(inputs_of(indices, side=side), author, how, step=3)
        batch = Batch.from_inputs(result.inputs)
        rows = zip(batch.sample_ids.tolist(), batch.input_ids, batch.attention_mask, strict=True)
        return {sample: ids[mask].tolist() for sample, ids, mask in rows}

    together = texts([0, 1, 2, 3, 7], "left")
    for sample, text in together.items():
        assert texts([sample]) == {sample: text}


def test_rollouts_stop_at_the_stop_token_and_keep_it():
    model = pico_llama(0, dtype=torch.float64)
    free = roll_out(inputs_of([0, 1, 2]), author_of(model), sampling(), step=0).continuations
    stop = int(free.tokens[1, 4])
    bound = roll_out(inputs_of([0, 1, 2]), author_of(model), sampling(stop_token_id=stop), step=0)
    for row in range(3):
        found = (free.tokens[row] == stop).nonzero()
        length = int(found[0]) + 1 if len(found) else 12
        assert int(bound.continuations.mask[row].sum()) == length
        assert bound.continuations.tokens[row, :length].tolist() == free.tokens[row, :length].tolist()
    batch = Batch.from_inputs(bound.inputs)
    assert len(predicted_positions(batch)) == int(bound.continuations.mask.sum())


@pytest.mark.parametrize("side", ["left", "right"])
def test_only_what_was_written_is_predicted(side):
    """No prompt, no padding; corpus blocks as they were."""
    old = inputs_of([0, 1, 2, 3, 4, 5, 6, 7], side=side)
    result = roll_out(old, author_of(pico_llama(0)), sampling(fraction=0.5, stop_token_id=EOS), step=1)
    batch, before = Batch.from_inputs(result.inputs), Batch.from_inputs(old)
    assert 0 < batch.on_policy.sum() < 8, "some of each kind"
    assert torch.equal(batch.sample_ids, before.sample_ids)
    positions, written = predicted_positions(batch), iter(result.continuations.tokens)
    masks = iter(result.continuations.mask)
    length = batch.input_ids.shape[1]
    for row in range(8):
        own = positions.labels[positions.index // length == row].tolist()
        if batch.on_policy[row]:
            expected = next(written)[next(masks)].tolist()
            ids = batch.input_ids[row][batch.attention_mask[row]]
            assert ids[-len(expected) :].tolist() == expected
            assert ids[: -len(expected)].tolist() == prompt_of(*_row(before, row), 8).tolist()
        else:
            alone = predicted_positions(Batch.from_inputs({k: v[row : row + 1] for k, v in old.items()}))
            expected = alone.labels.tolist()
        assert own == expected
    padding = ~batch.attention_mask
    assert (batch.input_ids[padding] == PAD).all()
    starts = padding & ~torch.nn.functional.pad(padding, (1, 0))[:, :-1]
    assert (batch.position_ids[starts] == 0).all(), "padding is a segment of its own"


def _row(batch: Batch, row: int) -> tuple[torch.Tensor, ...]:
    return batch.input_ids[row], batch.attention_mask[row], batch.position_ids[row]


def test_without_a_chosen_block_the_batch_is_as_it_was():
    old = {**inputs_of([0, 1]), "stored": {"t": {}}}
    result = roll_out(old, author_of(pico_llama(0)), sampling(fraction=1e-9), step=0)
    assert result.continuations is None
    assert all(result.inputs[name] is value for name, value in old.items())


def test_what_is_sampled_from_is_the_mixture_with_the_teachers():
    """log p~ of every token, recomputed over the whole text."""
    student = pico_llama(0, dtype=torch.float64)
    teachers = [teacher_of(1, weight_temperature=2.0), teacher_of(2, target_temperature=0.5)]
    weighting = Weighting("entropy", "window:128", 0.25)
    for fusion in (mixture_logprobs, geometric_logprobs):
        author = author_of(student, teachers, weighting=weighting, fusion=fusion)
        result = roll_out(inputs_of([0, 3]), author, sampling(teacher_share=0.2), step=0)
        batch, written = Batch.from_inputs(result.inputs), result.continuations
        for row in range(2):
            ids = batch.input_ids[row][batch.attention_mask[row]]
            steps = slice(len(ids) - 13, len(ids) - 1)
            own = logprobs_of(student, ids)[steps].exp()
            raw = [logprobs_of(t._base.model, ids)[steps] for t in teachers]
            flat = (raw[0] / 2.0).log_softmax(-1), raw[1]
            scores = torch.stack([(p.exp() * p).sum(-1) / 0.25 for p in flat], -1)
            one, two = scores.softmax(-1).unbind(-1)
            views = raw[0], (raw[1] / 0.5).log_softmax(-1)
            if fusion is mixture_logprobs:
                fused = one[:, None] * views[0].exp() + two[:, None] * views[1].exp()
            else:
                fused = (one[:, None] * views[0] + two[:, None] * views[1]).softmax(-1)
            expected = (0.2 * fused + 0.8 * own).log().gather(-1, written.tokens[row][:, None])[:, 0]
            assert torch.allclose(written.sampled_logprobs[row], expected, atol=1e-10)


def test_a_broken_teacher_takes_no_share():
    good, bad = teacher_of(1), teacher_of(2)
    with torch.no_grad():
        bad._base.model.model.norm.weight.fill_(torch.nan)
    student, how = pico_llama(0, dtype=torch.float64), sampling(teacher_share=0.4)
    both = roll_out(inputs_of([0, 1]), author_of(student, [good, bad]), how, step=0).continuations
    one = roll_out(inputs_of([0, 1]), author_of(student, [good]), how, step=0).continuations
    none = roll_out(inputs_of([0, 1]), author_of(student, [bad]), how, step=0).continuations
    assert torch.allclose(both.sampled_logprobs, one.sampled_logprobs)
    assert torch.equal(none.sampled_logprobs, none.student_logprobs)


def test_adapters_over_one_base_write_each_as_itself():
    torch.manual_seed(0)
    config = LoraConfig(target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    tuned = get_peft_model(pico_llama(1, dtype=torch.float64), config)
    tuned.add_adapter("other", config)
    base = SharedBase(tuned)
    prompts, mask = left_padded([torch.arange(5), torch.arange(9)], PAD, torch.device("cpu"))
    names = ("default", "other", None)
    teachers = [LocalTeacher(str(n), base, vocab_size=260, fingerprint="", adapter=n) for n in names]
    assert all(Capability.GENERATE in teacher.provides for teacher in teachers)
    with torch.no_grad():
        decoders = [teacher.next_tokens(2) for teacher in teachers]
        first = [decoder.prefill(prompts, mask) for decoder in decoders]
        second = [decoder.step(torch.tensor([3, 4])) for decoder in decoders]
    for name, prefilled, stepped in zip(names, first, second, strict=True):
        base.select(name)
        for row, prompt in enumerate((torch.arange(5), torch.arange(9))):
            expected = logprobs_of(tuned, torch.cat([prompt, torch.tensor([3 + row])]))
            assert torch.allclose(prefilled.logprobs[row], expected[-2], atol=1e-10)
            assert torch.allclose(stepped.logprobs[row], expected[-1], atol=1e-10)
            assert float(stepped.entropy[row]) == pytest.approx(float(-(expected[-1].exp() * expected[-1]).sum()))


def test_a_lora_student_writes_with_its_adapter_and_without_dropout():
    torch.manual_seed(0)
    config = LoraConfig(
        target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False, lora_dropout=0.5
    )
    tuned = get_peft_model(pico_llama(0, dtype=torch.float64, dropout=0.5), config).train()
    uniforms = torch.rand(1, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    written = author_of(tuned).write([torch.arange(9)], uniforms, sampling(max_new_tokens=6))
    assert tuned.training
    assert written.tokens[0].tolist() == reference(tuned.eval(), torch.arange(9), uniforms[0], 1.0)


def test_modes_are_restored_one_by_one_also_after_an_error():
    model = pico_llama(0).train()
    model.model.norm.eval()
    with pytest.raises(KeyError), evaluating(model):
        assert not any(module.training for module in model.modules())
        raise KeyError
    assert model.training and not model.model.norm.training


def test_a_cache_is_worth_it(record_property):
    """Tokens a second of a pico model with and without; the limit is far below what is measured."""
    model, prompts = pico_llama(0), [torch.arange(32)] * 8
    uniforms = torch.rand(8, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    author, how = author_of(model), sampling(max_new_tokens=48)
    author.write(prompts, uniforms[:, :2], sampling(max_new_tokens=2))
    start = time.perf_counter()
    author.write(prompts, uniforms, how)
    cached = time.perf_counter() - start
    ids, start = torch.stack(prompts), time.perf_counter()
    with torch.no_grad():
        for column in range(48):
            positions = torch.arange(ids.shape[1]).expand_as(ids)
            logits = author.head(last_hidden_states(model, ids, positions).flatten(0, 1)).view(*ids.shape, -1)
            probs = logits[:, -1].double().softmax(-1)
            ids = torch.cat([ids, (probs.cumsum(-1) <= uniforms[:, column, None]).sum(-1, keepdim=True)], 1)
    plain = time.perf_counter() - start
    record_property("tokens_per_second", {"cached": 8 * 48 / cached, "plain": 8 * 48 / plain})
    print(f"cached {8 * 48 / cached:.0f} tokens/s, plain {8 * 48 / plain:.0f} tokens/s")
    assert cached < plain
