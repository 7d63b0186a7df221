"""Digests of folders and documents: any damage is found, what is as it was written is not refused."""

import json
from pathlib import Path

import pytest

from collegium.base.digests import (
    card_is_edited,
    has_digests,
    sealed,
    sealed_text,
    unsealed,
    update_digest,
    verify_folder,
    verify_student,
    verify_text,
    write_digests,
)
from collegium.base.errors import DataError
from tests.support.damage import damages


FILES = ("model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "sub/part.json")


@pytest.fixture
def folder(tmp_path) -> Path:
    for number, name in enumerate(FILES):
        path = tmp_path / "student" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(range(number, 200 + number)) * 3)
    write_digests(tmp_path / "student")
    return tmp_path / "student"


@pytest.mark.parametrize("name", [*FILES, "digests.json"])
def test_every_flip_and_cut_is_found(folder, name):
    verify_folder(folder)
    for damage in damages(folder / name):
        with pytest.raises(DataError, match="is not as it was written"):
            verify_folder(folder)
            pytest.fail(damage)
    verify_folder(folder)


def test_missing_and_added_files(folder):
    verify_folder(folder)
    (folder / "notes.txt").write_text("of a user")
    (folder / "trainer_state.json").write_text("{}")
    verify_folder(folder)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(DataError, match=r"adapter_config.json: is not as it was written \(it was not there"):
        verify_folder(folder)
    (folder / "adapter_config.json").unlink()
    (folder / "tokenizer.json").unlink()
    with pytest.raises(DataError, match="tokenizer.json.*it is missing"):
        verify_folder(folder)


def test_a_card_may_be_edited_and_that_is_known(folder):
    card = folder / "README.md"
    card.write_text("by collegium")
    update_digest(folder, "README.md")
    assert not card_is_edited(folder)
    card.write_text("by hand")
    assert card_is_edited(folder)
    verify_folder(folder)


def test_a_folder_of_an_earlier_version_is_accepted_and_that_is_said(folder, capsys):
    (folder / "digests.json").unlink()
    assert not has_digests(folder)
    verify_student(folder)
    assert "whether it is as it was written is not known" in capsys.readouterr().err


def test_a_document_with_its_digest():
    content = {"a": [1, 2.5, None], "b": {"c": "text"}}
    assert unsealed(sealed(content)) == content
    assert unsealed(content) == content, "of an earlier version"
    changed = {**sealed(content), "a": [1, 2.5, 0]}
    with pytest.raises(ValueError, match="not what was written"):
        unsealed(changed)


def test_a_text_with_its_digest(tmp_path):
    path = tmp_path / "recipe.yaml"
    text = "".join(f"key_{number}: {number}\n" for number in range(50))
    path.write_text(sealed_text(text))
    verify_text(path)
    for damage in damages(path):
        try:
            verify_text(path)
        except DataError:
            continue
        assert path.read_text(errors="replace").partition("\n")[2] == text or "cut" in damage
    path.write_text(text)
    verify_text(path)


def test_two_digests_are_no_keys_of_a_user(tmp_path):
    path = tmp_path / "digests.json"
    path.write_text(json.dumps({"files": {}}))
    with pytest.raises(DataError, match="it lacks its own digest"):
        verify_folder(tmp_path)
