"""Lists of a cache as plain Parquet: what training reads, whole or not there."""

import errno
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from collegium.base.errors import DataError
from collegium.cache.exchange import ROWS_PER_GROUP, export_parquet
from collegium.cache.manifest import Mode
from collegium.cache.reader import CacheReader
from collegium.teachers.cached import CachedTeacher
from tests.support.caches import MODES, all_rows, builder_of, collate, plan_of


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Finished caches, each built once."""
    built: dict[str, Path] = {}

    def cache_of(mode: Mode = "top_k", **settings: Any) -> Path:
        key = json.dumps([mode, settings], sort_keys=True)
        if key not in built:
            built[key] = tmp_path_factory.mktemp("cache")
            builder_of(built[key], plan_of(mode, **settings)).build()
        return built[key]

    return cache_of


def segment_ends(row: dict[str, Any]) -> set[int]:
    return {int(end) - 1 for end in np.cumsum(row["segment_lengths"])}


class TestExport:
    @pytest.mark.parametrize("settings", [{}, {"mode": "sampled"}, {"kd_temperature": 2.0}])
    def test_holds_what_training_reads(
        self, settings: dict[str, Any], caches: Callable[..., Path], tmp_path: Path
    ) -> None:
        location, rows = caches(**settings), all_rows()
        assert export_parquet(CacheReader(location), rows, tmp_path / "out.parquet") == len(rows)
        exported = pq.read_table(tmp_path / "out.parquet").to_pylist()
        teacher = CachedTeacher("pico", location, kd_temperature=settings.get("kd_temperature", 1.0))
        for row, found in zip(rows, exported, strict=True):
            stored = {name: tensor.numpy() for name, tensor in teacher.read(collate([row])).items()}
            assert found["input_ids"] == list(row["input_ids"])
            last = segment_ends(row)
            assert found["positions"] == [i for i in range(len(row["input_ids"])) if i not in last]
            for name in ("tail_logprob", "entropy", "label_logprob"):
                np.testing.assert_array_equal(np.float32(found[name]), stored[name])
            for index, ids in enumerate(found["token_ids"]):
                width = len(ids)
                assert ids == sorted(set(ids)) and width > 0
                np.testing.assert_array_equal(ids, stored["token_ids"][index, :width])
                assert (stored["token_ids"][index, width:] == -1).all()
                logprobs = np.float32(found["logprobs"][index])
                np.testing.assert_array_equal(logprobs, stored["logprobs"][index, :width])

    def test_lists_and_tail_sum_to_one(self, caches: Callable[..., Path], tmp_path: Path) -> None:
        export_parquet(CacheReader(caches()), all_rows(), tmp_path / "out.parquet")
        for row in pq.read_table(tmp_path / "out.parquet").to_pylist():
            for logprobs, tail in zip(row["logprobs"], row["tail_logprob"], strict=True):
                assert np.exp(logprobs).sum() + math.exp(tail) == pytest.approx(1.0, abs=2e-3)

    def test_types_metadata_and_groups(self, caches: Callable[..., Path], tmp_path: Path) -> None:
        reader = CacheReader(caches())
        export_parquet(reader, iter(all_rows()), tmp_path / "new" / "out.parquet")
        file = pq.ParquetFile(tmp_path / "new" / "out.parquet")
        tokens, numbers = pa.list_(pa.int32()), pa.list_(pa.float32())
        assert dict(zip(file.schema_arrow.names, file.schema_arrow.types, strict=True)) == {
            "input_ids": tokens,
            "positions": tokens,
            "token_ids": pa.list_(tokens),
            "logprobs": pa.list_(numbers),
            "tail_logprob": numbers,
            "entropy": numbers,
            "label_logprob": numbers,
        }
        facts = json.loads(file.schema_arrow.metadata[b"collegium"])
        assert facts["teacher"]["fingerprint"] == "pico-1"
        assert facts["settings"]["kd_temperature"] == 1.0
        assert file.metadata.num_row_groups == -(-len(all_rows()) // ROWS_PER_GROUP)

    def test_a_changed_byte_is_noticed(self, caches: Callable[..., Path], tmp_path: Path) -> None:
        path = tmp_path / "out.parquet"
        export_parquet(CacheReader(caches()), all_rows(), path)
        column = pq.ParquetFile(path).metadata.row_group(0).column(3)
        content = bytearray(path.read_bytes())
        content[column.data_page_offset + column.total_compressed_size - 5] ^= 1
        path.write_bytes(content)
        with pytest.raises(OSError, match="CRC"):
            pq.ParquetFile(path, page_checksum_verification=True).read()

    def test_is_whole_or_not_there(self, caches: Callable[..., Path], tmp_path: Path) -> None:
        path, rows = tmp_path / "out.parquet", all_rows()
        stranger = {**rows[0], "input_ids": np.asarray(rows[0]["input_ids"]) + 1}
        reader = CacheReader(caches())
        with pytest.raises(DataError, match="holds no block with these tokens"):
            export_parquet(reader, [*rows, stranger], path)
        assert list(tmp_path.iterdir()) == []
        export_parquet(reader, rows[:1], path)
        before = path.read_bytes()
        with pytest.raises(DataError):
            export_parquet(reader, [stranger], path)
        assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]

    def test_a_damaged_cache_is_not_exported(self, caches: Callable[..., Path], tmp_path: Path) -> None:
        location = tmp_path / "cache"
        shutil.copytree(caches(), location)
        shard = location / "shards" / "shard-00001.parquet"
        content = bytearray(shard.read_bytes())
        content[len(content) // 3] ^= 1
        shard.write_bytes(content)
        with pytest.raises(DataError, match="shard-00001.parquet: is damaged"):
            export_parquet(CacheReader(location), all_rows(), tmp_path / "out.parquet")
        assert [path.name for path in tmp_path.iterdir()] == ["cache"]

    def test_a_full_disk_is_named(
        self, caches: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left on device: .*out.parquet'"):
            export_parquet(CacheReader(caches()), all_rows(), tmp_path / "out.parquet")
        assert list(tmp_path.iterdir()) == []

    def test_refuses_what_does_not_fit(self, caches: Callable[..., Path], tmp_path: Path) -> None:
        path = tmp_path / "out.parquet"
        with pytest.raises(DataError, match="holds hidden states and no lists.*cache.mode"):
            export_parquet(CacheReader(caches(MODES[2])), all_rows(), path)
        short = {**all_rows()[0], "segment_lengths": [1, 2]}
        with pytest.raises(DataError, match="a block of 16 tokens has segments of 3 together"):
            export_parquet(CacheReader(caches()), [short], path)
