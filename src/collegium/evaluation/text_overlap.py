"""Likeness of written texts to others, and repetition within them: BLEU, chrF, repeated n-grams.

BLEU and chrF are sacrebleu's. Both follow from counts that are added up over documents, which is what
`CorpusFigure` resamples; a mean of sentence scores would be another figure. A text is compared with one other.

The counts are read through what sacrebleu's own significance tests are built on, since its public functions
give scores only; that they lead to `corpus_score` is tested.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from collegium.base.errors import RecipeError
from collegium.evaluation.resampling import CorpusFigure, Floats


def bleu(texts: Sequence[str], references: Sequence[str]) -> CorpusFigure:
    """Corpus BLEU from 0 to 100, with the signature of sacrebleu (Papineni et al., 2002; arXiv:1804.08771).

    Args:
        texts: Detokenised, one a document.
        references: What each is compared with.

    Raises:
        RecipeError: sacrebleu is not installed.
    """
    return _figure(_sacrebleu().metrics.BLEU(force=True), texts, references)


def chrf(texts: Sequence[str], references: Sequence[str]) -> CorpusFigure:
    """Corpus chrF from 0 to 100: n-grams of up to 6 characters (Popovic, 2015). See `bleu`."""
    return _figure(_sacrebleu().metrics.CHRF(), texts, references)


def _figure(metric: Any, texts: Sequence[str], references: Sequence[str]) -> CorpusFigure:
    statistics = np.array(metric._extract_corpus_statistics(list(texts), [list(references)]), dtype=np.float64)

    def score(sums: Floats) -> float:
        return float(metric._compute_score_from_stats([round(count) for count in sums.tolist()]).score)

    return CorpusFigure(statistics, score, str(metric.get_signature()))


def require_sacrebleu() -> None:
    """Find sacrebleu before any work is done.

    Raises:
        RecipeError: it is not installed.
    """
    _sacrebleu()


def _sacrebleu() -> Any:
    try:
        import sacrebleu
    except ImportError as error:
        raise RecipeError(
            "evaluation.generation compares texts with sacrebleu, which is not installed: "
            "pip install 'collegium[eval]', or leave the section out"
        ) from error
    return sacrebleu


def repetition(tokens: Sequence[Sequence[int]], order: int = 4) -> CorpusFigure:
    """Share of n-grams that stood in the same text before (seq-rep-n of arXiv:1908.04319, over a corpus).

    Args:
        tokens: Of each text; those shorter than `order` have no n-gram and count for nothing.
        order: n.
    """
    counts = [_ngrams(text, order) for text in tokens]
    return CorpusFigure(np.array([[total - distinct, total] for distinct, total in counts], np.float64), _ratio)


def distinct(tokens: Sequence[Sequence[int]], order: int = 2) -> CorpusFigure:
    """Share of n-grams that are different ones within their text (distinct-n of arXiv:1510.03055).

    There it is counted over all texts at once, which depends on how many there are; here within each.
    """
    counts = [_ngrams(text, order) for text in tokens]
    return CorpusFigure(np.array(counts, np.float64), _ratio)


def mean_length(tokens: Sequence[Sequence[int]]) -> CorpusFigure:
    """Tokens of a text."""
    return CorpusFigure(np.array([[len(text), 1] for text in tokens], np.float64), _ratio)


def _ngrams(tokens: Sequence[int], order: int) -> tuple[int, int]:
    """Different n-grams, and all."""
    ngrams = [tuple(tokens[start : start + order]) for start in range(len(tokens) - order + 1)]
    return len(set(ngrams)), len(ngrams)


def _ratio(sums: Floats) -> float:
    return float(sums[0] / sums[1]) if sums[1] else float("nan")
