"""Documents that change their domain midway."""

import json

import pytest

from collegium.paper import switching
from collegium.paper.switching import write_switching
from tests.support.tiny_experiment import WORDS, specification


@pytest.fixture
def folder(tmp_path):
    """Long documents, whose every word says which one of which domain they are."""
    for domain in WORDS:
        lines = [" ".join(f"{domain}{number}." for _ in range(200)) for number in range(30)]
        (tmp_path / f"{domain}.txt").write_text("\n".join(lines))
    return tmp_path


def documents(folder, **changes):
    write_switching(specification(folder, **changes), folder / "out")
    lines = (folder / "out" / "switching.jsonl").read_text().splitlines()
    (folder / "out" / "switching.jsonl").unlink()
    return [json.loads(line)["text"] for line in lines]


def test_every_document_is_of_several_domains(folder):
    texts = documents(folder)
    assert len(texts) > 10
    for text in texts:
        pieces = text.split("\n")
        assert len(pieces) == 2
        assert sorted(next(d for d in WORDS if d in piece) for piece in pieces) == sorted(WORDS)
        assert all(not (all(domain in piece for domain in WORDS)) for piece in pieces)
        assert all(200 <= len(piece) <= 800 for piece in pieces)


def test_domains_do_not_always_come_in_the_same_order(folder):
    first = {text[:3] for text in documents(folder)}
    assert len({start.strip(".0123456789")[:1] for start in first} & {"c", "d"}) == 2


def test_text_is_of_the_students_part_alone_and_each_piece_once(folder):
    texts = documents(folder, student_documents={"cats": 5, "dogs": 7})
    numbers = {domain: set() for domain in WORDS}
    for text in texts:
        for word in text.replace("\n", " ").split()[1:-1]:
            for domain in WORDS:
                if word.startswith(domain) and word.endswith("."):
                    numbers[domain].add(int(word.removeprefix(domain).removesuffix(".")))
    assert numbers == {"cats": set(range(5)), "dogs": set(range(7))}
    whole = sum(len(f"cats{n}.") * 200 + 199 for n in range(5))
    assert sum(len(piece) for text in texts for piece in text.split("\n") if "cats" in piece) <= whole


def test_the_same_text_twice(folder):
    assert documents(folder) == documents(folder)


def test_what_is_there_stays(folder):
    (folder / "out").mkdir()
    (folder / "out" / "switching.jsonl").write_text("mine")
    write_switching(specification(folder), folder / "out")
    assert (folder / "out" / "switching.jsonl").read_text() == "mine"


def test_no_more_documents_than_are_wanted(folder, monkeypatch):
    monkeypatch.setattr(switching, "NUM_DOCUMENTS", 3)
    assert len(documents(folder)) == 3
