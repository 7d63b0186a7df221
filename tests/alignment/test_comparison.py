"""What is said of pairs of tokenizers, each made so that the right answer is known beforehand."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from collegium.alignment.comparison import ModelTokenizer, ReadText, compare, kind_of, lost_bytes, shares
from collegium.alignment.plan import Aligner
from collegium.alignment.token_bytes import TokenBytes
from collegium.alignment.verdict import Comparison
from collegium.alignment.vocabulary import VocabularyMap
from collegium.data.tokenization import DocumentTokenizer
from tests.support.markov import letters_tokenizer
from tests.support.pico import byte_tokenizer
from tests.support.small_tokenizers import byte_level, sentencepiece_bpe, unigram, word_piece


TEXTS = ("the cat walked home", "Größe 漢字 🙂", "walking, talking")


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("COLLEGIUM_CACHE", str(tmp_path))


def read(tokenizer: PreTrainedTokenizerFast, *texts: str, eos: bool = False) -> list[ReadText]:
    """Texts as a recipe's blocks hold them."""
    encoded = DocumentTokenizer(tokenizer, add_bos=False, add_eos=eos).encode(texts)
    return [
        ReadText(text.encode(), document.tokens.astype(np.int64), document.byte_ends)
        for text, document in zip(texts, encoded, strict=True)
    ]


def compared(
    student: PreTrainedTokenizerFast,
    teacher: PreTrainedTokenizerFast,
    *texts: str,
    rows: tuple[int | None, int | None] = (None, None),
    **options,
) -> Comparison:
    sides = [ModelTokenizer(t, n) for t, n in zip((student, teacher), rows, strict=True)]
    return compare("other", *sides, read(student, *(texts or TEXTS)), **options)


def with_special(tokenizer: PreTrainedTokenizerFast, *tokens: str) -> PreTrainedTokenizerFast:
    copied = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()),
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
    )
    copied.add_special_tokens({"additional_special_tokens": list(tokens)})
    return copied


def filled_up(tokenizer: PreTrainedTokenizerFast, num_rows: int) -> PreTrainedTokenizerFast:
    """The vocabulary filled up as that of a GGUF file is."""
    tree = json.loads(tokenizer.backend_tokenizer.to_str())
    size = max(tokenizer.get_vocab().values()) + 1
    tree["model"]["vocab"] |= {f"[PAD{i}]": i for i in range(size, num_rows)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(tree)),
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
    )


def test_the_same_tokenizer() -> None:
    pair = compared(byte_level(), byte_level())
    assert (pair.kind, pair.verdict) == ("same", "same tokenizer: nothing to align")
    assert pair.student == pair.own
    assert pair.overlap.shares == {"exact": 1.0, "split": 0.0, "inside": 0.0, "absent": 0.0}
    assert pair.overlap.shared == pair.overlap.same_ids == pair.student.num_tokens == len(byte_level().get_vocab())
    assert pair.overlap.num_special == 0
    assert not pair.warnings


def test_rows_that_no_token_has_make_no_other_tokenizer() -> None:
    pair = compared(byte_level(), byte_level(), rows=(512, 448))
    size = len(byte_level().get_vocab())
    assert pair.kind == "padding"
    assert pair.verdict == f"same tokenizer, other padding: {size} tokens, in vocabularies of 512 and 448 rows"
    assert pair.overlap.shares["exact"] == 1.0


@pytest.mark.parametrize("sizes", [(600, 700), (None, 700)])
def test_neither_do_entries_that_fill_up_a_vocabulary(sizes) -> None:
    student, teacher = (byte_level() if size is None else filled_up(byte_level(), size) for size in sizes)
    pair = compared(student, teacher)
    assert pair.kind == "padding"
    assert pair.own.num_tokens == len(byte_level().get_vocab()) < pair.own.num_rows == 700


def test_special_tokens_alone_differ() -> None:
    pair = compared(byte_level(), with_special(byte_level(), "<turn>", "<call>"))
    size = len(byte_level().get_vocab())
    assert pair.kind == "special"
    assert pair.verdict.startswith("same tokens but 2 special tokens differ: 100.0 % of the text exact")
    assert pair.overlap.special == (("<turn>", None, size), ("<call>", None, size + 1))
    assert pair.overlap.shared == pair.overlap.same_ids


def test_equal_sizes_make_no_same_tokenizer() -> None:
    """Two letters exchanged, and the same letters with other merges."""
    student = letters_tokenizer("abc", [("a", "b"), ("b", "c")])
    for teacher in (
        letters_tokenizer("bac", [("a", "b"), ("b", "c")]),
        letters_tokenizer("abc", [("b", "c"), ("a", "b")]),
    ):
        assert len(teacher.get_vocab()) == len(student.get_vocab())
        assert compared(student, teacher, "abc", "cab").kind == "other"


def test_same_tokens_cut_otherwise_are_another_tokenizer() -> None:
    vocab = [("a", "b"), ("b", "c")]
    first, second = letters_tokenizer("abc", vocab), letters_tokenizer("abc", vocab)
    tree = json.loads(first.backend_tokenizer.to_str())
    tree["model"]["merges"].reverse()
    second = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(tree)), bos_token="<s>", eos_token="</s>"
    )
    assert first.get_vocab() == second.get_vocab()
    sides = ModelTokenizer(first), ModelTokenizer(second)
    for side in sides:
        side.probes = [
            side.tokenizer.encode("abc", add_special_tokens=False)
        ]  # the usual lines have no such letters
    assert kind_of(*sides) == "other"


def test_shares_and_tokens_are_counted_as_they_lie() -> None:
    """The student writes a|b|ab..., the teacher ab as one token: after `a` it is inside, at `c` both are cut."""
    student = letters_tokenizer("abc", [], bos=False)
    teacher = letters_tokenizer("abc", [("a", "b")], bos=False)
    pair = compared(student, teacher, "cabcab")
    # Predicted: a|b|c|a|b. `a` begins the teacher's `ab` and is exact, `b` is inside of it, `c` exact.
    assert pair.overlap.shares == pytest.approx({"exact": 0.6, "split": 0.0, "inside": 0.4, "absent": 0.0})
    assert pair.overlap.student_per_teacher == 6 / 4
    assert (pair.student.bytes_per_token, pair.own.bytes_per_token) == (1.0, 1.5)
    assert (pair.overlap.shared, pair.overlap.same_ids) == (3, 3)
    assert pair.overlap.shared_of_student == 3 / 4 and pair.overlap.shared_of_teacher == 3 / 5  # with EOS
    assert pair.verdict == (
        "another tokenizer: 60.0 % of the text exact, 40.0 % approximate, "
        "the rest (0.0 %) left to the other teachers"
    )
    without = compared(student, teacher, "cabcab", approximate="split")
    assert "60.0 % of the text exact, 0.0 % approximate, the rest (40.0 %)" in without.verdict


@pytest.mark.parametrize("make", [byte_level, sentencepiece_bpe, unigram])
def test_shares_are_those_of_the_plan_of_a_batch(make) -> None:
    """The same texts as rows of one batch, padded, with EOS."""
    student, teacher = TokenBytes(byte_level(340)), TokenBytes(make())
    texts = read(byte_level(340), *TEXTS, eos=True)
    shape = (len(texts), max(len(text.tokens) for text in texts))
    tokens, mask = np.zeros(shape, np.int64), np.zeros(shape, bool)
    for row, text in enumerate(texts):
        tokens[row, : len(text.tokens)], mask[row, : len(text.tokens)] = text.tokens, True
    places = np.broadcast_to(np.arange(shape[1]), shape)
    plan = Aligner(student, teacher, VocabularyMap.of(student, teacher)).plan(tokens, mask, places, 0 * tokens)
    pair = compare("other", ModelTokenizer(byte_level(340)), ModelTokenizer(make()), texts)
    assert pair.overlap.shares == shares(plan)
    assert 0 < pair.overlap.shares["exact"] < 1


def test_little_that_is_exact_is_warned_of() -> None:
    student, teacher = letters_tokenizer("ab", [("a", "b")], bos=False), letters_tokenizer("ab", [], bos=False)
    pair = compared(student, teacher, "abababab")
    assert pair.overlap.shares["split"] == 1.0
    assert any("under half of the text is exact (0.0 %)" in warning for warning in pair.warnings)


def test_bos_eos_and_normalizers() -> None:
    pair = compared(byte_level(), sentencepiece_bpe())
    assert pair.student.bos == ("<s>", 0) and not pair.student.begins_with_bos
    assert pair.own.bos == ("<b>", 1) and pair.own.begins_with_bos
    assert (pair.student.normalizers, pair.own.normalizers) == (("NFC",), ())
    assert ("<s>", 0, None) in pair.overlap.special and ("<b>", None, 1) in pair.overlap.special


def test_another_eos_of_the_same_tokenizer_is_warned_of() -> None:
    """Base and instruct models of one family."""
    student, teacher = with_special(byte_level(), "<end>"), with_special(byte_level(), "<end>")
    teacher.eos_token = "<end>"
    pair = compared(student, teacher)
    assert pair.kind == "same"
    assert any("ends a text with </s> (1), the teacher with <end>" in warning for warning in pair.warnings)


def test_bytes_that_tokens_do_not_give_back_are_counted() -> None:
    """A character that a Unigram vocabulary lacks; NFC. A mark for spaces is read as bytes."""
    assert compared(byte_level(), unigram(), "the \u0416 cat").own.lost_bytes == 2
    assert compared(byte_level(), sentencepiece_bpe(), "the ▁ cat").own.lost_bytes == 0
    composed = compared(byte_level(), byte_level(), "cafe\u0301 and").student
    assert composed.lost_bytes == 3  # `e` and its accent become one other character
    pair = compared(unigram(), byte_level(), "the \u0416 cat")
    assert (pair.student.lost_bytes, pair.own.lost_bytes) == (2, 0)
    assert any("student's tokenizer loses 2 of 10 bytes" in warning for warning in pair.warnings)
    assert any(
        "teacher's tokenizer loses 2" in w for w in compared(byte_level(), unigram(), "the \u0416 cat").warnings
    )


def test_a_byte_that_is_dropped_is_one_byte() -> None:
    table = TokenBytes(byte_tokenizer())
    content = "a\U00040000b".encode()
    tokens = np.array([table.ids[content[i : i + 1]] for i in (0, 2, 3, 4, 5)])  # the lead byte has no token
    assert lost_bytes(ReadText(content, tokens, np.array([1, 5, 5, 5, 6])), table) == 1


def test_a_space_before_a_text_is_no_loss() -> None:
    assert compared(sentencepiece_bpe(), byte_level()).student.lost_bytes == 0


def test_a_tokenizer_that_loses_text_cannot_be_used() -> None:
    pair = compared(byte_level(), word_piece())
    assert pair.kind == "unusable"
    assert "WordPiece" in pair.verdict and "need a BPE or Unigram tokenizer" in pair.verdict
    assert pair.overlap is None
    same = compared(word_piece(), word_piece(), "the thes")
    assert same.kind == "same" and same.student.lost_bytes is None


def test_without_text_vocabularies_are_compared_all_the_same() -> None:
    pair = compare("other", ModelTokenizer(byte_level()), ModelTokenizer(sentencepiece_bpe()), [])
    assert pair.overlap.shares is None and pair.overlap.shared > 256
    assert "not known without text" in pair.verdict
    assert not pair.warnings
