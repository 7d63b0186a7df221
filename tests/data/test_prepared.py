"""Damage to a prepared folder is found and named."""

import json

import datasets
import pytest

from collegium.base.digests import sealed
from collegium.base.errors import DataError
from collegium.data.prepared import PreparedText
from tests.support.damage import damages


@pytest.fixture
def folder(tmp_path, prepare, list_source, prose):
    prepare([list_source("a", prose(60))], tmp_path / "p")
    return tmp_path / "p"


def unsealed_by_hand(manifest: dict) -> dict:
    return {key: value for key, value in manifest.items() if key != "sha256"}


def test_no_damage_of_any_file_is_used(folder):
    prepared = PreparedText.load(folder)
    prepared.verify()
    for name in prepared.manifest["files"]:
        for _ in damages(folder / name):
            with pytest.raises(DataError, match=f"{folder / name}: is damaged.*collegium prepare"):
                PreparedText.load(folder)
            with pytest.raises(DataError, match=f"{folder / name}: is damaged.*collegium prepare"):
                prepared.verify()
    prepared.verify()


def test_no_damage_of_the_manifest_is_used(folder):
    whole = PreparedText.load(folder)
    for _ in damages(folder / "manifest.json"):
        try:
            loaded = PreparedText.load(folder)
        except DataError:
            continue
        assert unsealed_by_hand(loaded.manifest) == unsealed_by_hand(whole.manifest) | {
            key: value for key, value in loaded.manifest.items() if key not in whole.manifest
        }, "all that is read is as it was written"


def test_text_of_an_earlier_version_is_compared_by_its_sha256(folder):
    manifest = unsealed_by_hand(json.loads((folder / "manifest.json").read_text()))
    for record in manifest["files"].values():
        del record["xxh3_128"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    PreparedText.load(folder)
    path = folder / "train/train-00000.arrow"
    for _ in damages(path, flips=3, cuts=1):
        with pytest.raises(DataError, match=f"{path}: is damaged"):
            PreparedText.load(folder)


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_a_file_that_shrinks_or_changes_while_it_is_open_ends_in_a_sentence(folder, kept):
    train = PreparedText.load(folder).train
    path = folder / "train/train-00000.arrow"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    last = train.dataset._files[0].rows - 1
    with pytest.raises(DataError, match=f"{path}: has changed since it was opened"):
        for row in range(last + 1):
            _ = train[row]
    path.write_bytes(bytes(byte ^ 1 for byte in content))
    with pytest.raises(DataError, match=f"{path}: has changed since it was opened"):
        _ = train[last]
    path.write_bytes(content)
    assert train[last]["input_ids"]


def test_selections_are_those_of_datasets(folder):
    train = PreparedText.load(folder).train
    files = sorted((folder / "train").glob("*.arrow"))
    expected = datasets.concatenate_datasets([datasets.Dataset.from_file(str(path)) for path in files])
    assert list(train.dataset["domain"]) == list(expected["domain"])
    rows = [5, 1, 9, 9]
    chosen = train.dataset.select(rows)
    assert list(chosen) == list(expected.select(rows))
    again = chosen.select([2, 0])
    assert list(again) == list(expected.select([9, 5]))
    assert again.columns(["segment_lengths"])["segment_lengths"].to_pylist() == [
        row["segment_lengths"] for row in again
    ]
    assert train.take(3)[2]["sample_id"] == 2 * len(train) // 3


@pytest.mark.parametrize("name", ["train/train-00001.arrow", "held_out/a.arrow", "held_out/a.jsonl"])
def test_missing_short_and_foreign_files_are_found_by_load(folder, name):
    path = folder / name
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(DataError, match=f"{path}: is damaged: it has {len(content) - 1} bytes"):
        PreparedText.load(folder)
    path.unlink()
    with pytest.raises(DataError, match=f"{path}: is damaged: it is missing"):
        PreparedText.load(folder)
    with pytest.raises(DataError, match="delete"):
        PreparedText.load(folder)


def test_unreadable_arrow_file_and_wrong_row_count(folder):
    path = folder / "train/train-00000.arrow"
    content = path.read_bytes()
    path.write_bytes(b"\xff" * len(content))
    with pytest.raises(DataError, match=f"{path}: is damaged"):
        PreparedText.load(folder)
    path.write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["train/train-00000.arrow"]["rows"] = 7
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="its content is not what was written"):
        PreparedText.load(folder)
    (folder / "manifest.json").write_text(json.dumps(sealed(unsealed_by_hand(manifest))))
    with pytest.raises(DataError, match="it has 8 rows, not 7"):
        PreparedText.load(folder)


def test_manifest_missing_damaged_or_of_another_version(folder):
    manifest = folder / "manifest.json"
    content = manifest.read_text()
    manifest.write_text(content[:-20])
    with pytest.raises(DataError, match="manifest.json: cannot be read"):
        PreparedText.load(folder)
    manifest.write_text(content.replace('"schema": 3', '"schema": 99'))
    with pytest.raises(DataError, match="schema 99, this version reads 3"):
        PreparedText.load(folder)
    manifest.unlink()
    with pytest.raises(DataError, match="run `collegium prepare` first"):
        PreparedText.load(folder)


def test_datasets_reads_the_folder_without_us(folder, tmp_path):
    rows = datasets.load_dataset(str(folder / "train"), split="train", cache_dir=str(tmp_path / "c"))
    ours = PreparedText.load(folder).train
    assert [row["input_ids"] for row in rows] == [row["input_ids"] for row in ours]


def test_blocks_go_through_workers_of_a_data_loader(folder):
    from torch.utils.data import DataLoader

    from collegium.data.collate import BlockCollator
    from collegium.data.order import StatelessOrder

    train = PreparedText.load(folder).train
    order = StatelessOrder(len(train), seed=0, total=12)
    loader = DataLoader(
        train, batch_size=4, sampler=order, collate_fn=BlockCollator(pad_token_id=0), num_workers=1
    )
    seen = [sample_id for batch in loader for sample_id in batch["sample_ids"].tolist()]
    assert seen == list(order)
