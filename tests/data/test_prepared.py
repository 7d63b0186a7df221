"""Damage to a prepared folder is found and named."""

import json
import random

import datasets
import pytest

from collegium.base.errors import DataError
from collegium.data.prepared import PreparedText


@pytest.fixture
def folder(tmp_path, prepare, list_source, prose):
    prepare([list_source("a", prose(60))], tmp_path / "p")
    return tmp_path / "p"


def test_every_flipped_byte_is_found_by_verify(folder):
    generator = random.Random(0)
    prepared = PreparedText.load(folder)
    prepared.verify()
    for name in prepared.manifest["files"]:
        path = folder / name
        content = path.read_bytes()
        for _ in range(10):
            damaged = bytearray(content)
            damaged[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
            path.write_bytes(damaged)
            with pytest.raises(DataError, match=f"{path}: is damaged.*collegium prepare"):
                prepared.verify()
        path.write_bytes(content)
    prepared.verify()


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
