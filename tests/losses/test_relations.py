"""Attention and relations against whole matrices, across borders of documents, and in memory."""

import math

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from collegium.losses.relations import (
    Scorer,
    attention_divergence,
    attention_score_error,
    relation_divergence,
    relation_heads,
)


POSITIONS = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0, 1], [0, 1, 2, 3, 4, 5, 6, 7, 8]])
MASK = torch.tensor([[True] * 7 + [False] * 2, [True] * 9])


def draw(*shape, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64, **options)


def scorers(heads=(4, 4), groups=(2, 4), length=9, size=2):
    return [
        Scorer(draw(size, a, length, d, seed=a + d), draw(size, k, length, d, seed=10 * k + d), scale)
        for a, k, d, scale in zip(heads, groups, (6, 5), (None, 0.3), strict=True)
    ]


def whole(scorer, scale):
    keys = scorer.keys.repeat_interleave(scorer.queries.shape[1] // scorer.keys.shape[1], 1)
    return torch.einsum("bhid,bhjd->bhij", scorer.queries, keys) * scale


def visible_keys(b, i):
    return [j for j in range(i + 1) if i - j <= int(POSITIONS[b, i])]


def reference(kind, student, teacher):
    """Row by row over lists of keys, as the papers write it."""
    a_s, a_t = whole(student, 6**-0.5), whole(teacher, 0.3)
    total = 0.0
    for b, i in MASK.nonzero().tolist():
        keys = visible_keys(b, i)
        s, t = a_s[b, :, i, keys], a_t[b, :, i, keys]
        if kind == "divergence":
            s, t = s.softmax(-1), t.softmax(-1)
        if len(s) != len(t):
            s, t = s.mean(0, keepdim=True), t.mean(0, keepdim=True)
        error = (s - t) ** 2 / len(keys) if kind == "scores" else t * (t / s).log()
        total += error.sum() / len(s)
    return total


TERMS = {"scores": attention_score_error, "divergence": attention_divergence}


@pytest.mark.parametrize("chunk_size", [1, 4, 64])
@pytest.mark.parametrize(("heads", "groups"), [((4, 4), (2, 4)), ((4, 6), (4, 2)), ((2, 2), (1, 1))])
@pytest.mark.parametrize("kind", TERMS)
def test_attention_equals_the_whole_matrix(kind, heads, groups, chunk_size):
    student, teacher = scorers(heads, groups)
    found = TERMS[kind](student, teacher, POSITIONS, MASK, chunk_size=chunk_size)
    torch.testing.assert_close(found, reference(kind, student, teacher), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("num", [1, 2, 6])
def test_relations_equal_the_whole_matrix(num):
    student, teacher = draw(2, 3, 9, 4), draw(2, 6, 9, 3, seed=1)
    expected = 0.0
    flat = [x.permute(0, 2, 1, 3).reshape(2, 9, -1) for x in (student, teacher)]
    for b, i in MASK.nonzero().tolist():
        keys = visible_keys(b, i)
        for h in range(num):
            relations = []
            for x in flat:
                width = x.shape[-1] // num
                part = x[b, :, h * width : (h + 1) * width]
                relations.append((part[keys] @ part[i] / math.sqrt(width)).softmax(-1))
            s, t = relations
            expected += (t * (t / s).log()).sum() / num
    found = relation_divergence(student, teacher, POSITIONS, MASK, num_relation_heads=num, chunk_size=4)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_relations_with_heads_as_they_are_are_attention_of_a_tensor_to_itself():
    student, teacher = draw(2, 3, 9, 4), draw(2, 6, 9, 3, seed=1)
    found = relation_divergence(student, teacher, POSITIONS, MASK, num_relation_heads=None)
    expected = attention_divergence(Scorer(student, student), Scorer(teacher, teacher), POSITIONS, MASK)
    assert torch.equal(found, expected) and found > 0


@pytest.mark.parametrize("heads", [(2, 2), (2, 4)])
@pytest.mark.parametrize("kind", TERMS)
def test_gradients(kind, heads):
    _, teacher = scorers(heads, (1, 2))

    def value(queries, keys):
        return TERMS[kind](Scorer(queries, keys), teacher, POSITIONS, MASK, chunk_size=4)

    inputs = draw(2, 2, 9, 3, requires_grad=True), draw(2, 1, 9, 3, seed=1, requires_grad=True)
    assert torch.autograd.gradcheck(value, inputs)


@pytest.mark.parametrize("kind", TERMS)
def test_packed_documents_are_separate_blocks(kind):
    student, teacher = scorers(size=1)

    def part(scorer, rows):
        return Scorer(scorer.queries[:, :, rows], scorer.keys[:, :, rows], scorer.scale)

    def value(rows, positions):
        mask = torch.ones_like(positions, dtype=torch.bool)
        return TERMS[kind](part(student, rows), part(teacher, rows), positions, mask, chunk_size=4)

    packed = value(slice(0, 9), torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3]]))
    apart = value(slice(0, 5), torch.arange(5)[None]) + value(slice(5, 9), torch.arange(4)[None])
    torch.testing.assert_close(packed, apart, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", TERMS)
def test_the_same_scores_cost_nothing(kind):
    student, _ = scorers()
    assert TERMS[kind](student, student, POSITIONS, MASK).abs() < 1e-12


@pytest.mark.parametrize("garbage", [math.nan, math.inf])
@pytest.mark.parametrize("heads", [(4, 4), (4, 6)])
@pytest.mark.parametrize("kind", TERMS)
def test_rows_where_the_teacher_is_not_finite_are_left_out(kind, heads, garbage):
    student, teacher = scorers(heads, (4, 2))
    spoilt = Scorer(teacher.queries, teacher.keys.clone(), teacher.scale)
    spoilt.keys[0, :, 5] = garbage  # seen by rows 5 and 6 of its segment
    spoilt.keys[0, :, 8] = garbage  # padding
    mask = MASK.clone()
    mask[0, 5:7] = False
    queries = student.queries.clone().requires_grad_()
    found = TERMS[kind](Scorer(queries, student.keys), spoilt, POSITIONS, MASK, chunk_size=4)
    (gradient,) = torch.autograd.grad(found, queries)
    torch.testing.assert_close(found, TERMS[kind](student, teacher, POSITIONS, mask))
    assert gradient.isfinite().all() and (gradient[0, :, 5:] == 0).all() and (gradient[1] != 0).any()


def test_half_precision_is_compared_in_single():
    student, teacher = (Scorer(s.queries.bfloat16(), s.keys.bfloat16(), s.scale) for s in scorers())
    exact = [Scorer(s.queries.double(), s.keys.double(), s.scale) for s in (student, teacher)]
    with torch.autocast("cpu", torch.bfloat16):
        found = attention_divergence(student, teacher, POSITIONS, MASK)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), attention_divergence(*exact, POSITIONS, MASK), rtol=1e-5, atol=1e-5)


def test_number_of_relation_heads():
    assert relation_heads("auto", [576, 960]) == 64
    assert relation_heads("auto", [192, 320, 576]) == 64
    assert relation_heads("auto", [30, 42]) == 6
    assert relation_heads(48, [768, 384]) == 48
    with pytest.raises(
        ValueError, match="is 36, which must divide the widths 576, 960; 1, 2, 3, 4, 6, .* 64 would"
    ):
        relation_heads(36, [576, 960])


class StorageCounter(TorchDispatchMode):
    """Follows the bytes of every storage that an operation returns."""

    def __init__(self):
        super().__init__()
        self.live = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.live[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.live = {key: live for key, live in self.live.items() if not live[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return result


@pytest.mark.parametrize("kind", TERMS)
def test_memory_grows_with_the_length_not_its_square(kind):
    def peak(length):
        queries = torch.randn(1, 4, length, 2, requires_grad=True)
        teacher = torch.randn(1, 4, length, 2)
        positions = torch.arange(length)[None]
        mask = torch.ones_like(positions, dtype=torch.bool)
        with StorageCounter() as counter:
            TERMS[kind](
                Scorer(queries, queries), Scorer(teacher, teacher), positions, mask, chunk_size=16
            ).backward()
        return counter.peak / (4 * 16 * length * 4)  # buffers of [B A n S]

    assert peak(512) == pytest.approx(peak(256), rel=0.1)
    assert peak(512) < 8
