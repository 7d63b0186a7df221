"""From a row of a data set to an item. The prompts are a few words beyond the text: small models read them.

A row is a mapping, from the hub or from a local file. The names of columns that are understood are those of the
sets on the hub that are usual for each task, and of their original files.
"""

from collections.abc import Callable, Mapping
from typing import Any

from collegium.base.errors import DataError
from collegium.data.tasks.entities import entities_of, format_entities
from collegium.data.tasks.items import Task, TaskItem


Row = Mapping[str, Any]

SENTIMENTS = (" negative", " positive")
NO_YES = (" no", " yes")


def item_of(task: Task, row: Row, max_characters: int) -> TaskItem | None:
    """The item of a row; None for a row without an answer, as test sets have them.

    Args:
        task: The task.
        row: Columns by name.
        max_characters: A longer text, passage or dialogue is cut to this, between words.

    Raises:
        DataError: columns are missing, or a label is not known.
    """
    return _READERS[task](row, max_characters)


def _sentiment(row: Row, size: int) -> TaskItem | None:
    text = _one_line(_text(row, "sentence", "text"))
    label = _label(row, "label", ("negative", "positive"))
    if label is None:
        return None
    return TaskItem.choosing(f"Review: {cut(text, size)}\nSentiment:", SENTIMENTS, label, key=text)


def _paraphrase(row: Row, size: int) -> TaskItem | None:
    first = _one_line(_text(row, "sentence1", "#1 String", "text1"))
    second = _one_line(_text(row, "sentence2", "#2 String", "text2"))
    label = _label(row, "label", ("not_equivalent", "equivalent"), "Quality")
    if label is None:
        return None
    prompt = f"Sentence 1: {cut(first, size)}\nSentence 2: {cut(second, size)}\nSame meaning:"
    return TaskItem.choosing(prompt, NO_YES, label, key=f"{first}\n{second}")


def _ner(row: Row, size: int) -> TaskItem | None:
    tokens, tags = (_column(row, *names) for names in (("tokens", "words"), ("ner_tags", "tags", "labels")))
    if any(not isinstance(tag, str) for tag in tags):
        raise DataError(f"NER tags are numbers without names, {tags[:5]}: use a set whose features name its tags")
    if not tokens:
        return None
    sentence = " ".join(tokens)
    kept = len(tokens) if len(sentence) <= size else len(cut(sentence, size).split(" "))
    reference = format_entities(entities_of(tokens[:kept], tags[:kept]))
    prompt = f"Text: {' '.join(tokens[:kept])}\nEntities:"
    return TaskItem.writing(prompt, f" {reference}", key=sentence)


def _qa(row: Row, size: int) -> TaskItem | None:
    question = _one_line(_text(row, "question")).rstrip("?").rstrip()
    passage = _one_line(_text(row, "passage", "context", "support"))
    shown = cut(passage, size)
    prompt = f"{shown}\nQuestion: {question}?\nAnswer:".lstrip()
    key = passage or question
    if "correct_answer" in row:
        return _multiple_choice(row, prompt, key)
    if "answers" in row:
        return _extracted(row, prompt, shown, key)
    label = _label(row, "answer", ("false", "true"), "label")
    return None if label is None else TaskItem.choosing(prompt, NO_YES, label, key=key)


def _multiple_choice(row: Row, prompt: str, key: str) -> TaskItem:
    """SciQ: the right answer and three wrong ones, here in an order that does not tell which is which."""
    right = _one_line(_text(row, "correct_answer"))
    wrong = {_one_line(_text(row, f"distractor{number}")) for number in (1, 2, 3)}
    choices = sorted(answer for answer in {right, *wrong} if answer)
    return TaskItem.choosing(prompt, tuple(f" {c}" for c in choices), choices.index(right), key=key)


def _extracted(row: Row, prompt: str, shown: str, key: str) -> TaskItem | None:
    """SQuAD: words of the passage; None where these are cut away."""
    answers = [_one_line(text) for text in _column(row, "answers")["text"]]
    return TaskItem.writing(prompt, f" {answers[0]}", key=key) if answers and answers[0] in shown else None


def _summarization(row: Row, size: int) -> TaskItem | None:
    text = _text(row, "dialogue", "document", "article", "text").replace("\r\n", "\n").strip()
    summary = _one_line(_text(row, "summary", "highlights"))
    return TaskItem.writing(f"{cut(text, size)}\nSummary:", f" {summary}", key=text) if summary else None


_READERS: Mapping[Task, Callable[[Row, int], TaskItem | None]] = {
    "sentiment": _sentiment,
    "paraphrase": _paraphrase,
    "ner": _ner,
    "qa": _qa,
    "summarization": _summarization,
}


def cut(text: str, size: int) -> str:
    """At most `size` characters of a text, cut between words if there are any."""
    if len(text) <= size:
        return text
    border = max(text.rfind(blank, 0, size + 1) for blank in " \n")
    return text[: border if border > 0 else size].rstrip()


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _column(row: Row, *names: str) -> Any:
    """The first of these columns that is there."""
    for name in names:
        if name in row:
            return row[name]
    raise DataError(f"there is no column {' or '.join(map(repr, names))}, only {', '.join(map(str, row))}")


def _text(row: Row, *names: str) -> str:
    value = _column(row, *names)
    if not isinstance(value, str):
        raise DataError(f"column {names[0]!r} holds {type(value).__name__}, not text")
    return value


def _label(row: Row, name: str, names: tuple[str, str], *others: str) -> int | None:
    """0 or 1 of a label that is a number, truth value or name; None for -1, which stands for unknown."""
    value = str(_column(row, name, *others)).lower()
    known = {"0": 0, "1": 1, "false": 0, "true": 1, names[0]: 0, names[1]: 1}
    if value != "-1" and value not in known:
        raise DataError(f"label {value!r} is none of 0, 1, {', '.join(names)}")
    return known.get(value)
