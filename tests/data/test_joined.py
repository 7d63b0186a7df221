"""A teacher's own prepared text beside the student's: what is believed of it lies where it says."""

from itertools import product

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, normalizers
from transformers import PreTrainedTokenizerFast

from collegium.alignment.plan import Aligner
from collegium.alignment.token_bytes import TokenBytes
from collegium.alignment.vocabulary import make_map
from collegium.data.collate import BlockCollator
from collegium.data.joined import JoinedText
from tests.support.small_tokenizers import byte_level, sentencepiece_bpe, unigram


TEXTS = [
    f"the cat {i} sat on the mat{tail}"
    for i, tail in product(
        range(8),
        ["", " \n", " \u0416 and looked at the dog", ", na\u00efve caf\u00e9 \u6f22\u5b57", " aaaa \u0416aaaa"],
    )
]


def stripping() -> PreTrainedTokenizerFast:
    """Byte-level BPE that drops blanks at the end of a text."""
    tokenizer = Tokenizer.from_str(byte_level().backend_tokenizer.to_str())
    tokenizer.normalizer = normalizers.Strip(left=False, right=True)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")


TOKENIZERS = {
    "byte_level": byte_level,
    "sentencepiece": sentencepiece_bpe,
    "unigram": unigram,
    "stripping": stripping,
}


@pytest.fixture
def joined(tmp_path, prepare, list_source):
    def make(student: str, teacher: str, sizes: tuple[int, int] = (23, 57)):
        sources, tokenizers = [list_source("a", TEXTS)], [TOKENIZERS[name]() for name in (student, teacher)]
        texts = [
            prepare(sources, tmp_path / side, tokenizer=tokenizer, block_size=size, add_eos=True)
            for side, tokenizer, size in zip("st", tokenizers, sizes, strict=True)
        ]
        own, other = (TokenBytes(tokenizer) for tokenizer in tokenizers)
        aligner = Aligner(own, other, make_map(own, other))
        rows = [texts[0].train[i] for i in range(len(texts[0].train))]
        return aligner, JoinedText(texts[1], aligner), rows

    return make


def batch_of(rows):
    return {
        name: values
        for name, values in BlockCollator(pad_token_id=0)(rows).items()
        if isinstance(values, torch.Tensor)
    }


@pytest.mark.parametrize(("student", "teacher"), [*product(TOKENIZERS, TOKENIZERS)])
def test_tokens_lie_where_their_bytes_lie(joined, student, teacher):
    """Whatever either tokenizer loses or puts before a text."""
    aligner, text, rows = joined(student, teacher)
    own, reading = text.read(batch_of(rows))
    believed = 0
    for segment, pieces in zip(own, reading.pieces, strict=True):
        content = aligner.student.decode(segment.tokens)
        for piece in pieces:
            spelt = [aligner.teacher.pieces[token] or b"" for token in piece.text.tokens]
            for start, end, bytes_ in zip(piece.text.ends[:-1], piece.text.ends[1:], spelt[1:], strict=True):
                if 0 <= start < end <= len(content):
                    assert bytes_ == content[start:end] or (start == 0 and bytes_ == b" " + content[:end])
                    believed += 1
            is_ended = piece.text.tokens[-1] == aligner.teacher.eos and segment.tokens[-1] == aligner.student.eos
            assert not is_ended or piece.text.ends[-1] == segment.ends[-1]
    assert believed > 100


def test_the_beginning_of_a_text_is_found_behind_a_space_of_the_students(joined):
    _, text, rows = joined("sentencepiece", "byte_level", (400, 400))
    own, reading = text.read(batch_of(rows))
    begins = [pieces for segment, pieces in zip(own, reading.pieces, strict=True) if len(segment.tokens) > 4]
    assert len(begins) > 10 and all(begins)


def test_a_block_that_is_there_twice_is_read_twice(joined):
    """As where a small domain is repeated; each of the teacher's rows lies in one segment's spans."""
    aligner, text, rows = joined("byte_level", "sentencepiece")
    once = aligner.join(*text.read(batch_of(rows[:2])))
    twice = aligner.join(*text.read(batch_of([*rows[:2], *rows[:2]])))
    assert np.array_equal(twice.kinds, np.tile(once.kinds, 2))
    read = [len(np.unique(plan.teacher_spans[plan.teacher_spans >= 0])) for plan in (once, twice)]
    assert read[1] == 2 * read[0] == len(twice.span_bytes)


def test_rows_of_other_text_are_of_no_segment(joined):
    """A block of the teacher's holds more than the student's batch does."""
    aligner, text, rows = joined("byte_level", "byte_level", (16, 200))
    own, reading = text.read(batch_of(rows[:1]))
    plan = aligner.join(own, reading)
    assert (plan.teacher_segments == -1).any()
    for number, segment in enumerate(own):
        labels = plan.input_ids[plan.attention_mask & (plan.position_ids > 0)][plan.teacher_segments == number]
        content, spelt = (aligner.student.decode(tokens) for tokens in (segment.tokens, labels))
        assert spelt and content.endswith(spelt)
