"""Figures of answers: accuracy, F1, exact match and ROUGE-L, each with what it is on every item.

All are sums over items or follow from such sums, so that intervals and paired differences resample items.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence

import numpy as np

from collegium.base.errors import RecipeError
from collegium.data.tasks.entities import parse_entities
from collegium.evaluation.resampling import CorpusFigure, Floats


def mean(values: Iterable[float]) -> CorpusFigure:
    """Mean over items, such as accuracy of what is 1 or 0."""
    return CorpusFigure(np.array([[value, 1.0] for value in values], np.float64), _ratio)


def f1(found: Sequence[Iterable[Hashable]], right: Sequence[Iterable[Hashable]]) -> CorpusFigure:
    """Micro-averaged F1 of what was found in each item against what is there; repeated things count as often.

    2 TP / (found + right), with TP and counts added up over items; 0 where nothing is there and nothing was found.
    """
    rows = []
    for ours, theirs in zip(found, right, strict=True):
        one = Counter(ours)
        other = Counter(theirs)
        rows.append([2.0 * (one & other).total(), one.total() + other.total()])
    return CorpusFigure(np.array(rows, np.float64), _ratio)


def entity_f1(texts: Sequence[str], references: Sequence[str]) -> CorpusFigure:
    """F1 of entities: words and type must both be right."""
    return f1([parse_entities(text) for text in texts], [parse_entities(text) for text in references])


def entity_token_f1(texts: Sequence[str], references: Sequence[str]) -> CorpusFigure:
    """F1 of the single words of entities, each with its type."""
    return f1([_typed_words(text) for text in texts], [_typed_words(text) for text in references])


def exact_match(texts: Sequence[str], references: Sequence[str]) -> CorpusFigure:
    """Share of answers that are the right one but for case, punctuation, articles and blanks (SQuAD)."""
    return mean(float(_words(text) == _words(right)) for text, right in zip(texts, references, strict=True))


def answer_f1(texts: Sequence[str], references: Sequence[str]) -> CorpusFigure:
    """Mean over items of the F1 of an answer's words (SQuAD); 1 where both have none."""
    return mean(_word_f1(_words(text), _words(right)) for text, right in zip(texts, references, strict=True))


def rouge_l(texts: Sequence[str], references: Sequence[str]) -> CorpusFigure:
    """Mean over items of ROUGE-L's F-measure, words stemmed (Lin, 2004), by the package rouge-score.

    Raises:
        RecipeError: it is not installed.
    """
    scorer = rouge_scorer()
    values = [scorer(right, text) for text, right in zip(texts, references, strict=True)]
    figure = mean(values)
    return CorpusFigure(figure.statistics, figure.score, "rouge-score|rougeL|fmeasure|stemmer")


def rouge_scorer() -> Callable[[str, str], float]:
    """ROUGE-L of a text, given the right one first.

    Raises:
        RecipeError: rouge-score is not installed.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise RecipeError(
            "evaluation.tasks measures summaries with rouge-score, which is not installed: "
            "pip install 'collegium[eval]', or leave task: summarization out"
        ) from error
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    return lambda right, text: float(scorer.score(right, text)["rougeL"].fmeasure)


def _typed_words(line: str) -> list[tuple[str, str]]:
    return [(word, kind) for words, kind in parse_entities(line) for word in words.split()]


def _words(text: str) -> list[str]:
    plain = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def _word_f1(ours: Sequence[str], theirs: Sequence[str]) -> float:
    if not ours or not theirs:
        return float(ours == theirs)
    return 2.0 * (Counter(ours) & Counter(theirs)).total() / (len(ours) + len(theirs))


def _ratio(sums: Floats) -> float:
    return float(sums[0] / sums[1]) if sums[1] else 0.0
