"""Overlap and repetition against sacrebleu's own corpus scores, and against counting by hand."""

import math

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st

from collegium.evaluation.resampling import CorpusFigure
from collegium.evaluation.statistics import (
    bootstrap_figure,
    bootstrap_ratio,
    paired_bootstrap_difference,
    paired_figure_difference,
)
from collegium.evaluation.text_overlap import bleu, chrf, distinct, mean_length, repetition


OPTIONS = {"confidence": 0.9, "num_samples": 400, "seed": 3}

WORDS = st.lists(st.sampled_from(["the", "cat", "sat", "on", "a", "mat", ".", "ö"]), min_size=0, max_size=12)
PAIRS = st.lists(st.tuples(WORDS.map(" ".join), WORDS.map(" ".join)), min_size=1, max_size=6)


def documents(figure: CorpusFigure, chosen: list[int]) -> CorpusFigure:
    return CorpusFigure(figure.statistics[chosen], figure.score)


@settings(max_examples=60, deadline=None)
@given(PAIRS, st.data())
def test_sums_over_documents_are_the_corpus_score(pairs, data):
    texts, references = [list(side) for side in zip(*pairs, strict=True)]
    assert bleu(texts, references).value == pytest.approx(sacrebleu.corpus_bleu(texts, [references]).score)
    assert chrf(texts, references).value == pytest.approx(sacrebleu.corpus_chrf(texts, [references]).score)
    # A resample, in which a document may stand twice, too.
    drawn = data.draw(st.lists(st.integers(0, len(texts) - 1), min_size=1, max_size=8))
    again = [texts[i] for i in drawn], [[references[i] for i in drawn]]
    assert documents(bleu(texts, references), drawn).value == pytest.approx(sacrebleu.corpus_bleu(*again).score)
    assert documents(chrf(texts, references), drawn).value == pytest.approx(sacrebleu.corpus_chrf(*again).score)


def bleu_by_hand(texts: list[str], references: list[str]) -> float:
    """Papineni et al. without smoothing, of words between blanks."""
    right, all_, ours, theirs = [0] * 4, [0] * 4, 0, 0
    for text, reference in zip(texts, references, strict=True):
        a, b = text.split(), reference.split()
        ours, theirs = ours + len(a), theirs + len(b)
        for n in range(1, 5):
            left = [tuple(b[i : i + n]) for i in range(len(b) - n + 1)]
            for i in range(len(a) - n + 1):
                all_[n - 1] += 1
                if tuple(a[i : i + n]) in left:
                    left.remove(tuple(a[i : i + n]))
                    right[n - 1] += 1
    brevity = 1.0 if ours >= theirs else math.exp(1 - theirs / ours)
    return 100 * brevity * math.exp(sum(math.log(r / n) for r, n in zip(right, all_, strict=True)) / 4)


def test_bleu_is_bleu_and_says_how():
    texts = ["the cat sat on the mat and slept", "a dog ran over the hill today"]
    references = ["the cat sat on the mat and then slept", "a dog ran over a hill today again"]
    figure = bleu(texts, references)
    assert figure.value == pytest.approx(bleu_by_hand(texts, references))
    assert bleu(references, references).value == pytest.approx(100)
    assert figure.signature == f"nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{sacrebleu.__version__}"
    assert chrf(texts, references).signature.startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:0")


def test_nothing_written_scores_nothing():
    assert bleu(["", ""], ["a b c d e", "f"]).value == 0
    assert chrf([""], ["abc"]).value == 0


def test_repetition_and_distinct_ngrams_by_hand():
    texts = [[1, 2, 1, 2, 1, 2, 1], [1, 2, 3, 4, 5], [1, 2], []]
    # 4-grams: 1212, 2121, 1212, 2121 (two are new), then 1234, 2345; too short; none.
    assert repetition(texts, 4).value == pytest.approx(2 / 6)
    # 2-grams: 12 21 12 21 12 21 (two are new); 12 23 34 45; 12.
    assert distinct(texts, 2).value == pytest.approx((2 + 4 + 1) / (6 + 4 + 1))
    assert mean_length(texts).value == pytest.approx(14 / 4)
    assert math.isnan(repetition([[1, 2]], 4).value)


def ratio(numerators: list[float], denominators: list[float]) -> CorpusFigure:
    return CorpusFigure(np.stack([numerators, denominators], 1), lambda sums: float(sums[0] / sums[1]))


def test_resampling_a_ratio_is_the_bootstrap_of_ratios():
    generator = np.random.default_rng(0)
    tokens = generator.integers(5, 50, 40).astype(float)
    ours, theirs = tokens * generator.normal(2, 0.3, 40), tokens * generator.normal(2.2, 0.3, 40)
    figure, baseline = ratio(ours, tokens), ratio(theirs, tokens)
    general = bootstrap_figure(figure, **OPTIONS)
    special = bootstrap_ratio(ours, tokens, **OPTIONS)
    assert general.value == pytest.approx(special.value)
    assert (general.low, general.high) == pytest.approx((special.low, special.high), rel=1e-9)  # the same draws
    pair = paired_figure_difference(figure, baseline, **OPTIONS)
    other = paired_bootstrap_difference(ours, tokens, theirs, tokens, **OPTIONS)
    assert (pair.value, pair.low, pair.high, pair.p_value) == pytest.approx(
        (other.value, other.low, other.high, other.p_value)
    )
    assert paired_figure_difference(figure, figure, **OPTIONS).value == 0
    assert paired_figure_difference(figure, figure, **OPTIONS).p_value == 1


def test_what_cannot_be_resampled_is_said():
    one = ratio([1.0], [2.0])
    assert math.isnan(bootstrap_figure(one, **OPTIONS).low) and bootstrap_figure(one, **OPTIONS).value == 0.5
    with pytest.raises(ValueError, match="no document"):
        bootstrap_figure(ratio([], []), **OPTIONS)
    with pytest.raises(ValueError, match="the same documents in the same order"):
        paired_figure_difference(one, ratio([1.0, 2.0], [1.0, 1.0]), **OPTIONS)
    with pytest.raises(ValueError, match="confidence is 2"):
        bootstrap_figure(one, confidence=2, num_samples=10, seed=0)
