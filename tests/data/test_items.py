"""Items of the five tasks: parts, rows of every format, prompts, and entities as a line."""

import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collegium.base.errors import DataError
from collegium.data.tasks.entities import entities_of, format_entities, parse_entities
from collegium.data.tasks.items import TASKS, TaskItem, part_of
from collegium.data.tasks.prompts import cut, item_of
from collegium.data.tasks.rows import read_rows


ROWS = {
    "sentiment": {"sentence": "a  fine film .", "label": 1},
    "paraphrase": {"sentence1": "He left.", "sentence2": "He went away.", "label": 0},
    "ner": {"tokens": ["Obama", "is", "in", "New", "York"], "ner_tags": ["B-PER", "O", "O", "B-LOC", "I-LOC"]},
    "qa": {"question": "is ice cold", "passage": "Ice is cold.", "answer": True},
    "summarization": {"dialogue": "#A#: Hi.\n#B#: Bye.", "summary": "They\nmeet."},
}

SCIQ = {
    "question": "What is ice?",
    "correct_answer": "water",
    "distractor1": "air",
    "distractor2": "zinc",
    "distractor3": "air",
    "support": "Ice is water.",
}


def item(task, row, size=1000):
    found = item_of(task, row, size)
    assert found is not None
    return found


def test_prompt_and_completion_of_each_task():
    assert set(ROWS) == set(TASKS)
    texts = {task: (item(task, row).prompt, item(task, row).reference) for task, row in ROWS.items()}
    assert texts == {
        "sentiment": ("Review: a fine film .\nSentiment:", " positive"),
        "paraphrase": ("Sentence 1: He left.\nSentence 2: He went away.\nSame meaning:", " no"),
        "ner": ("Text: Obama is in New York\nEntities:", " Obama = person; New York = location"),
        "qa": ("Ice is cold.\nQuestion: is ice cold?\nAnswer:", " yes"),
        "summarization": ("#A#: Hi.\n#B#: Bye.\nSummary:", " They meet."),
    }
    assert item("qa", ROWS["qa"]).text == "Ice is cold.\nQuestion: is ice cold?\nAnswer: yes"


def test_right_choice_is_the_reference():
    for task in ("sentiment", "paraphrase", "qa"):
        found = item(task, ROWS[task])
        assert found.choices[found.answer] == found.reference
    found = item("qa", SCIQ)
    assert found.choices == (" air", " water", " zinc")
    assert found.answer == 1
    assert found.prompt == "Ice is water.\nQuestion: What is ice?\nAnswer:"
    assert item("qa", {**SCIQ, "support": ""}).prompt == "Question: What is ice?\nAnswer:"


def test_answers_from_the_passage_are_written_and_left_out_where_they_are_cut_away():
    row = {"question": "What?", "context": "It is one long passage about ice", "answers": {"text": ["ice", "x"]}}
    assert item("qa", row) == TaskItem.writing(
        "It is one long passage about ice\nQuestion: What?\nAnswer:", " ice", key=row["context"]
    )
    assert item_of("qa", row, 20) is None
    assert item_of("qa", {**row, "answers": {"text": []}}, 100) is None


def test_unlabelled_and_empty_rows_are_no_items():
    assert item_of("sentiment", {**ROWS["sentiment"], "label": -1}, 100) is None
    assert item_of("paraphrase", {**ROWS["paraphrase"], "label": -1}, 100) is None
    assert item_of("ner", {"tokens": [], "ner_tags": []}, 100) is None
    assert item_of("summarization", {"dialogue": "a", "summary": " "}, 100) is None


@pytest.mark.parametrize("label", [1, True, "1", "positive", "Positive"])
def test_labels_by_number_and_name(label):
    assert item("sentiment", {"text": "x", "label": label}).answer == 1


def test_rows_that_are_not_of_the_task_are_refused_by_column():
    with pytest.raises(DataError, match="no column 'sentence' or 'text', only label"):
        item_of("sentiment", {"label": 1}, 100)
    with pytest.raises(DataError, match="label '7' is none of 0, 1, negative, positive"):
        item_of("sentiment", {"text": "x", "label": 7}, 100)
    with pytest.raises(DataError, match="column 'question' holds int, not text"):
        item_of("qa", {"question": 3}, 100)
    with pytest.raises(DataError, match="numbers without names"):
        item_of("ner", {"tokens": ["a"], "ner_tags": [3]}, 100)
    with pytest.raises(DataError, match="'PER' of token 'a'"):
        item_of("ner", {"tokens": ["a"], "ner_tags": ["PER"]}, 100)


@given(st.text(), st.integers(1, 40))
def test_cut_is_a_beginning_of_at_most_so_many_characters(text, size):
    short = cut(text, size)
    assert text.startswith(short)
    assert len(short) <= size
    if len(text) <= size:
        assert short == text


def test_a_cut_sentence_has_the_entities_that_are_left():
    assert item("ner", ROWS["ner"], 13).text == "Text: Obama is in\nEntities: Obama = person"
    assert item("ner", {**ROWS["ner"], "ner_tags": ["O"] * 5}).reference == " none"


def test_part_is_decided_by_the_key_alone():
    items = [TaskItem.writing(f"p{i}", " a", key=f"key {i}") for i in range(4000)]
    chosen = [i for i in items if part_of(i, 0.2) == "evaluation"]
    assert 700 < len(chosen) < 900
    assert all(part_of(TaskItem.writing("other", " b", key=i.key), 0.2) == "evaluation" for i in chosen)
    assert {part_of(i, 0.0) for i in items} == {"train"}
    assert {part_of(i, 1.0) for i in items} == {"evaluation"}
    assert all(part_of(i, 0.3) == "evaluation" for i in chosen)
    # What was trained on must never be measured by a later version.
    assert [i for i in range(20) if part_of(items[i], 0.2) == "evaluation"] == [8, 16]


@given(st.text(), st.floats(0, 1))
def test_every_key_is_in_exactly_one_part(key, share):
    assert part_of(TaskItem.writing("p", " a", key=key), share) in ("train", "evaluation")


WORDS = st.text(st.characters(exclude_categories=("Z", "C")), min_size=1).filter(lambda word: word != "=")


@given(
    st.lists(
        st.tuples(st.lists(WORDS, min_size=1, max_size=3), st.sampled_from(["PER", "LOC", "ORG", "MISC", "x"]))
    )
)
def test_entities_as_a_line_and_back(entities):
    tokens = [word for words, _ in entities for word in words]
    tags = [f"{'BI'[n > 0]}-{kind}" for words, kind in entities for n in range(len(words))]
    names = {"PER": "person", "LOC": "location", "ORG": "organization", "MISC": "other", "x": "x"}
    expected = [(" ".join(words), names[kind]) for words, kind in entities]
    assert entities_of(tokens, tags) == expected
    assert parse_entities(format_entities(expected)) == [
        (words.replace(";", ","), kind) for words, kind in expected
    ]


def test_entities_without_a_beginning_and_what_a_model_writes():
    assert entities_of(["a", "b", "c"], ["I-PER", "I-PER", "I-LOC"]) == [("a b", "person"), ("c", "location")]
    assert parse_entities(" none") == parse_entities("") == parse_entities("Obama person") == []
    assert parse_entities(" Obama = person ;Paris = location;") == [("Obama", "person"), ("Paris", "location")]


@pytest.mark.parametrize(
    "malformed", ["Obama person", "Obama =", "= person", "Obama=person", "Obama = a person", " ", "=", " = "]
)
def test_a_malformed_entity_takes_nothing_from_its_neighbours(malformed):
    right = [("New York", "location"), ("Bob", "person")]
    line = format_entities(right)
    first, second = line.split("; ")
    assert parse_entities(f" {malformed}; {line}") == parse_entities(f" {line}; {malformed}") == right
    assert parse_entities(f" {first};{malformed};{second}") == right


SST2 = "1 a fine film\n0 a bad ; film\n\n"
MRPC = (
    '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n1\t7\t8\tHe said "no.\tHe said so.\r\n0\t7\t8\ta\tb\r\n'
)
CONLL = "-DOCSTART- O\n\nObama\tB-PER\nsits\tO\n\nIn\tO\nNew\tB-LOC\nYork\tI-LOC\n"


def items_of(path, task):
    return [item(task, row) for row in read_rows(path)]


def written(folder, name, content):
    path = folder / name
    path.write_bytes(content.encode())
    return path


def test_text_formats(tmp_path):
    for content in (
        SST2,
        SST2.replace("1 ", "1\t").replace("0 ", "0\t"),
        "sentence\tlabel\na fine film\t1\nb\t0\n",
    ):
        found = items_of(written(tmp_path, "a.txt", content), "sentiment")
        assert [i.answer for i in found] == [1, 0]
        assert found[0].prompt == "Review: a fine film\nSentiment:"
    pairs = items_of(written(tmp_path, "b.txt", MRPC), "paraphrase")
    assert [i.answer for i in pairs] == [1, 0]
    assert pairs[0].prompt == 'Sentence 1: He said "no.\nSentence 2: He said so.\nSame meaning:'
    tagged = items_of(written(tmp_path, "c.conll", CONLL), "ner")
    assert [i.reference for i in tagged] == [" Obama = person", " New York = location"]


def test_tables_hold_what_their_features_name(tmp_path):
    features = datasets.Features(
        {
            "tokens": datasets.List(datasets.Value("string")),
            "ner_tags": datasets.List(datasets.ClassLabel(names=["O", "B-PER", "I-PER", "B-LOC", "I-LOC"])),
        }
    )
    made = datasets.Dataset.from_list([{"tokens": ["New", "York"], "ner_tags": [3, 4]}], features=features)
    made.to_parquet(tmp_path / "a.parquet")
    made.save_to_disk(tmp_path / "saved")
    (arrow,) = (tmp_path / "saved").glob("*.arrow")
    for path in (tmp_path / "a.parquet", arrow):
        assert [i.reference for i in items_of(path, "ner")] == [" New York = location"]


def test_jsonl_and_arrow_files(tmp_path):
    path = written(tmp_path, "a.jsonl", "\n".join(json.dumps(ROWS["summarization"]) for _ in range(2)) + "\n\n")
    assert len(items_of(path, "summarization")) == 2
    table = pa.Table.from_pylist([ROWS["qa"]])
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    pq.write_table(table, tmp_path / "a.parquet")
    for name in ("a.arrow", "a.parquet"):
        assert items_of(tmp_path / name, "qa") == [item("qa", ROWS["qa"])]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.arrow"])
def test_a_damaged_file_is_named(tmp_path, name):
    with pytest.raises(DataError, match=f"{name}: cannot be read as task data"):
        list(read_rows(written(tmp_path, name, "{no")))
