"""Prompts that are given and not learnt: tokens, blocks, labels and bytes; tasks as sources."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from collegium.base.errors import DataError
from collegium.data.blocks import pack_documents
from collegium.data.collate import BlockCollator
from collegium.data.documents import Document
from collegium.data.hub import HubRows, HubSource
from collegium.data.packing import Packer, blocks_to_table
from collegium.data.rows import Columns
from collegium.data.sources import FileSource
from collegium.data.task_source import FileRows, TaskSource
from collegium.data.tokenization import DocumentTokenizer, TokenizedDocument
from collegium.signals.contracts import Batch, predicted_positions
from tests.support.small_tokenizers import LOSSLESS


PAIRS = [
    (f"Review: number {i} was long and was read\nSentiment:", [" good", " not so good"][i % 2]) for i in range(40)
]


def document(prompt: str, completion: str) -> Document:
    return Document.checked(completion, prompt=prompt)


def test_a_prompt_belongs_to_its_document():
    assert document("ab", " c") == Document("ab c", prompt_characters=2)
    assert document("", "c") == Document("c")
    assert document("a\0", "c").problem == document("a", "c\0").problem == "nul"
    assert Document.checked("c", prompt=None).problem == "no_text"
    assert Columns("text", "input").document({"text": "c", "input": None}, "row 1") == Document("c")


@pytest.mark.parametrize("name", LOSSLESS)
@settings(deadline=None, max_examples=40)
@given(st.text("the cat\n é漢🙂", min_size=1), st.text("sat on 🙂é", min_size=1))
def test_tokens_are_cut_exactly_at_the_border(name, prompt, completion):
    tokenizer = LOSSLESS[name]()
    plain = DocumentTokenizer(tokenizer, add_bos=False, add_eos=False)
    framed = DocumentTokenizer(tokenizer, add_bos=True, add_eos=True)
    before, after = plain.encode([prompt, completion])
    (both,) = framed.encode_documents([document(prompt, completion)])
    assert both.prompt_tokens == 1 + len(before)
    assert both.tokens[1 : both.prompt_tokens].tolist() == before.tokens.tolist()
    assert both.tokens[both.prompt_tokens : -1].tolist() == after.tokens.tolist()
    assert both.byte_ends[both.prompt_tokens - 1] == len(prompt.encode())
    assert both.byte_ends[-1] == both.boundaries[-1] == len((prompt + completion).encode())
    assert np.all(np.diff(both.byte_ends) >= 0)


def test_plain_text_has_no_prompt(tokenizer):
    encoder = DocumentTokenizer(tokenizer, add_bos=True, add_eos=True)
    (one,), (other,) = encoder.encode(["the way of"]), encoder.encode_documents([Document("the way of")])
    assert one.tokens.tolist() == other.tokens.tolist()
    assert one.prompt_tokens == other.prompt_tokens == 0


@given(st.integers(0, 9), st.integers(0, 12), st.integers(0, 12))
def test_a_part_keeps_the_rest_of_its_prompt(prompt, start, stop):
    whole = TokenizedDocument(np.arange(10, dtype=np.int32), np.arange(10), np.arange(11), prompt)
    part = whole[start:stop]
    assert part.prompt_tokens == sum(int(token) < prompt for token in part.tokens)


SIZES = st.tuples(st.integers(0, 12), st.integers(1, 12))


@settings(deadline=None)
@given(st.lists(SIZES, max_size=25), st.integers(3, 17), st.booleans())
def test_blocks_predict_what_follows_prompts(sizes, block_size, with_bos):
    """Against the tokens themselves: a token says its document and whether it is of a prompt."""
    packer = Packer(block_size=block_size, domain="d", bos=-7 if with_bos else None)
    blocks, starts = [], {}
    for number, (prompt, rest) in enumerate(sizes):
        length = prompt + rest
        tokens = np.arange(length, dtype=np.int32) + 100 * number
        ends = 3 * np.arange(1, length + 1)
        made = TokenizedDocument(tokens, ends, np.concatenate([[0], ends]), prompt)
        blocks += [block for block, _ in packer.add(number, made)]
    blocks += packer.flush()
    for row in blocks_to_table(blocks).to_pylist() if blocks else []:
        labels = BlockCollator(pad_token_id=0)([{**row, "sample_id": 0}])["labels"][0].tolist()
        assert any(label != -100 for label in labels)
        learnt = BlockCollator(pad_token_id=0, learn_prompts=True)([{**row, "sample_id": 0}])["labels"][0].tolist()
        firsts = set(np.cumsum([0, *row["segment_lengths"][:-1]]).tolist())
        assert learnt == [-100 if i in firsts else token for i, token in enumerate(row["input_ids"])]
        start = 0
        for length, number, size in zip(
            row["segment_lengths"], row["segment_documents"], row["segment_bytes"], strict=True
        ):
            tokens, own = row["input_ids"][start : start + length], labels[start : start + length]
            is_given = [token < 0 or token % 100 < sizes[number][0] for token in tokens]
            expected = [-100 if i == 0 or is_given[i] else token for i, token in enumerate(tokens)]
            assert own == expected
            assert size == 3 * sum(label != -100 for label in own)
            starts.setdefault(number, []).append(length)
            start += length
    for number, lengths in starts.items():
        prompt, rest = sizes[number]
        if prompt and prompt + rest + with_bos <= block_size:
            assert len(lengths) == 1


@pytest.fixture
def files(tmp_path):
    rows = [{"prompt": prompt, "text": completion} for prompt, completion in PAIRS]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet", row_group_size=7)
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub/train.jsonl").write_text((tmp_path / "pairs.jsonl").read_text())
    lines = [f"{i % 2} number {i} was long and was read" for i in range(60)]
    (tmp_path / "reviews.txt").write_text("\n".join(lines))
    return tmp_path


def at_start(source):
    source.load_state_dict({})
    return source


def test_columns_of_prompts(files):
    expected = [document(*pair) for pair in PAIRS]
    sources = [
        FileSource("a", str(files / f"pairs.{kind}"), prompt_column="prompt") for kind in ("jsonl", "parquet")
    ]
    sources.append(HubSource("a", str(files / "hub"), prompt_column="prompt"))
    for source in sources:
        assert list(source) == expected
    plain = FileSource("a", str(files / "pairs.jsonl"))
    assert [d.text for d in plain] == [completion for _, completion in PAIRS]
    assert len({source.fingerprint for source in [plain, *sources]}) == 4
    for lines in (
        FileSource("a", str(files / "pairs.jsonl"), prompt_column="question"),
        HubSource("a", str(files / "hub"), prompt_column="question"),
    ):
        assert {row.problem for row in lines} == {"no_text"}
        assert "no key 'question'; there are prompt, text" in next(iter(at_start(lines))).detail
    with pytest.raises(DataError, match="no column 'question'.*set prompt_column to one of them"):
        list(FileSource("a", str(files / "pairs.parquet"), prompt_column="question"))


def unmasked(text, tokenizer):
    """What the labels of all blocks spell, a string for each segment."""
    found = []
    for blocks in (text.train, *text.held_out.values()):
        for index in range(len(blocks)):
            row = blocks[index]
            labels, start = BlockCollator(pad_token_id=0)([row])["labels"][0], 0
            for length in row["segment_lengths"]:
                own = labels[start : start + length]
                found.append(tokenizer.decode(own[own != -100]))
                start += length
    return found


def test_labels_spell_the_completions(files, tokenizer, prepare):
    source = FileSource("a", str(files / "pairs.jsonl"), prompt_column="prompt")
    text = prepare([source], files / "p", block_size=64, add_bos=True, add_eos=True, near_duplicate_threshold=1.0)
    assert sorted(unmasked(text, tokenizer)) == sorted(f"{completion}</s>" for _, completion in PAIRS)
    positions = [
        predicted_positions(Batch.from_inputs(BlockCollator(pad_token_id=0)([row]))) for row in text.train
    ]
    num_bytes = sum(size for row in text.train for size in row["segment_bytes"])
    held = sum(size for row in text.held_out["a"] for size in row["segment_bytes"])
    assert num_bytes + held == sum(len(completion) for _, completion in PAIRS)
    assert sum(map(len, positions)) < sum(len(row["input_ids"]) for row in text.train) / 2


def test_rows_in_memory_have_prompts_too(tokenizer):
    rows = [{"prompt": prompt, "text": completion} for prompt, completion in PAIRS[:6]]
    blocks = pack_documents(rows, tokenizer, block_size=64, prompt_column="prompt", add_eos=True)
    labels = torch.cat([BlockCollator(pad_token_id=0)([row])["labels"][0] for row in blocks])
    expected = "".join(f"{completion}</s>" for _, completion in PAIRS[:6])
    assert tokenizer.decode(labels[labels != -100]) == expected


def test_documents_of_prompts_alone_are_dropped(tokenizer, prepare, list_source, tmp_path):
    documents = [
        *(document(*pair) for pair in PAIRS),
        document("a prompt and no more:", " "),
        document("p" * 20, ""),
    ]
    text = prepare([list_source("a", documents)], tmp_path / "p", near_duplicate_threshold=1.0)
    assert text.manifest["sources"]["a"]["documents"] == {"held_out": 4, "kept": 36, "empty": 2}


def test_goes_on_after_a_stop_as_if_there_had_been_none(files, prepare, folder_content, monkeypatch):
    monkeypatch.setattr("collegium.data.preparation._BATCH_DOCUMENTS", 3)

    def work(name, on_progress=None):
        source = TaskSource("a", "sentiment", FileRows(str(files / "reviews.txt")))
        prepare([source], files / name, block_size=48, blocks_per_shard=2, on_progress=on_progress)

    work("whole")
    stops = []

    def stop(progress):
        if progress.documents > len(stops) * 5:
            stops.append(progress.documents)
            raise KeyboardInterrupt

    while True:
        try:
            work("stopped", stop)
            break
        except KeyboardInterrupt:
            pass
    assert len(stops) > 5
    assert folder_content(files / "stopped") == folder_content(files / "whole")


def test_task_source_by_part_and_from_any_place(files):
    def source(**options):
        return TaskSource("a", "sentiment", FileRows(str(files / "reviews.txt")), **options)

    everything = [d.text for d in source(part="all")]
    parts = {part: [d.text for d in source(part=part, evaluation_share=0.3)] for part in ("train", "evaluation")}
    assert len(everything) == 60 and all(len(part) > 5 for part in parts.values())
    assert sorted(parts["train"] + parts["evaluation"]) == sorted(everything)
    assert everything[1] == "Review: number 1 was long and was read\nSentiment: positive"

    lines = (files / "reviews.txt").read_text().split("\n")
    (files / "reversed.txt").write_text("\n".join(lines[::-1]))
    other = TaskSource("a", "sentiment", FileRows(str(files / "reversed.txt")), evaluation_share=0.3)
    assert [d.text for d in other] == parts["train"][::-1]

    first, states = source(), []
    for _ in first:
        states.append(json.loads(json.dumps(first.state_dict())))
    texts = [d.text for d in source()]
    for number in (0, 5, len(states) - 1):
        resumed = source()
        resumed.load_state_dict(states[number])
        assert [d.text for d in resumed] == texts[number + 1 :]

    different = [{}, {"part": "all"}, {"evaluation_share": 0.3}, {"max_characters": 20}]
    assert len({source(**options).fingerprint for options in different}) == 4
    chosen = source(part="all").some_items(10)
    assert [item.text for item in chosen] == [text for text in everything if text in {i.text for i in chosen}]


def test_task_source_of_the_hub_and_of_other_data(files):
    rows = [{"sentence": f"text {i}", "label": i % 2} for i in range(9)]
    (files / "sst").mkdir()
    (files / "sst/train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = TaskSource("a", "sentiment", HubRows("a", str(files / "sst")), part="all")
    documents = iter(source)
    next(documents)
    state = source.state_dict()
    rest = [d.text for d in documents]
    assert len(rest) == 8 and rest[0] == "Review: text 1\nSentiment: positive"
    source.load_state_dict(state)
    assert [d.text for d in source] == rest
    wrong = TaskSource("a", "ner", FileRows(str(files / "reviews.txt")))
    with pytest.raises(
        DataError, match=r"source 'a': .*reviews.txt holds no data for task ner: there is no column"
    ):
        list(wrong)
