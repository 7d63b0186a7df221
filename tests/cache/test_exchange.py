"""Plain Parquet out of a cache, and DistillKit's in: its format is written here by an encoder of its own."""

import errno
import json
import math
import os
import shutil
import struct
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from collegium.base.errors import DataError
from collegium.cache.codec import TokenLists
from collegium.cache.distillkit import DistillKitCompression, ImportedRow, ResidualBin, import_distillkit
from collegium.cache.exchange import ROWS_PER_GROUP, export_parquet
from collegium.cache.manifest import Mode
from collegium.cache.reader import CacheReader
from collegium.teachers.cached import CachedTeacher
from tests.support.caches import MODES, all_rows, builder_of, collate, plan_of


# The export.


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


# DistillKit's format, written without any of the code that reads it.

FORMATS = {"float16": "<e", "float32": "<f", "float64": "<d"}


def float_bytes(value: float, kind: str) -> bytes:
    if kind != "bfloat16":
        return struct.pack(FORMATS[kind], value)
    bits = struct.unpack("<I", struct.pack("<f", value))[0]
    return struct.pack("<H", (bits + 0x7FFF + (bits >> 16 & 1)) >> 16)  # to the nearest, ties to even


def float_of(content: bytes, kind: str) -> float:
    if kind != "bfloat16":
        return float(struct.unpack(FORMATS[kind], content)[0])
    return float(struct.unpack("<f", b"\0\0" + content)[0])


def rounded(value: float, kind: str) -> float:
    return float_of(float_bytes(value, kind), kind)


def packed(values: Sequence[int], bits: int) -> bytes:
    """One number after the other, the highest bit first, filled up with zeros on the right."""
    text = "".join(f"{value:0{bits}b}" for value in values)
    text += "0" * (-len(text) % 8)
    return bytes(int(text[start : start + 8], 2) for start in range(0, len(text), 8))


def term(name: int | str, rank: float) -> float:
    return {"sqrt": math.sqrt, "exp": math.exp}[name](rank) if isinstance(name, str) else rank**name


def ranks_of(config: DistillKitCompression) -> list[float]:
    size = config.k - config.exact_k
    return [rank / (size - 1) if config.normalize_t else rank for rank in range(size)]


def encode(logprobs: Sequence[float], config: DistillKitCompression) -> tuple[bytes, list[float]]:
    """Bytes of one position, as `compress_monotonic_logprobs` is documented to make them; what they stand for."""
    values = list(logprobs)
    if config.delta_encoding:
        values = [values[0], *(after - before for before, after in pairwise(values))]
    exact, rest = values[: config.exact_k], np.array(values[config.exact_k :])
    content = b"".join(float_bytes(value, config.exact_dtype) for value in exact)
    known = np.zeros(len(rest))
    if config.polynomial_terms:
        table = np.array([[term(name, rank) for name in config.polynomial_terms] for rank in ranks_of(config)])
        found = np.linalg.lstsq(table, rest, rcond=None)[0]
        content += b"".join(float_bytes(value, config.term_dtype) for value in found)
        known += table @ [rounded(value, config.term_dtype) for value in found]
    first = 0
    for group in config.residual_bins:
        own = slice(first, first + group.num_elements)
        half = 2 ** (group.element_bits - 1)
        residual = (rest - known)[own]
        scale = rounded(float(np.abs(residual).max()) / half, group.scale_dtype) or 1.0
        levels = np.clip(np.rint(residual / scale), -half, half - 1).astype(int)
        content += float_bytes(scale, group.scale_dtype) + packed((levels + half).tolist(), group.element_bits)
        known[own] += levels * scale
        first += group.num_elements
    values = [*(rounded(value, config.exact_dtype) for value in exact), *known]
    return content, list(accumulate(values)) if config.delta_encoding else values


def distributions(size: int, config: DistillKitCompression, seed: int = 0) -> tuple[Any, Any]:
    """Ids [n k] and log-probabilities [n k], the highest first."""
    logits = np.random.default_rng(seed).normal(size=(size, config.vocab_size)) * 2
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    ids = np.argsort(-logprobs, -1)[:, : config.k]
    return ids, np.take_along_axis(logprobs, ids, -1)


def write(
    path: Path, config: DistillKitCompression, rows: Sequence[tuple[Any, Any, Any]], **columns: Sequence[Any]
) -> Path:
    """A file of rows (input_ids, ids, logprobs) with DistillKit's schema; `columns` come beside or instead."""
    bits = math.ceil(math.log2(config.vocab_size))
    tree: dict[str, Any] = {
        "input_ids": [row[0] for row in rows],
        "compressed_logprobs": [[list(encode(position, config)[0]) for position in row[2]] for row in rows],
        "bytepacked_indices": [[list(packed(position, bits)) for position in row[1]] for row in rows],
    }
    content = pa.list_(pa.list_(pa.uint8()))
    types = {"input_ids": pa.list_(pa.uint64()), "compressed_logprobs": content, "bytepacked_indices": content}
    tree |= columns
    pq.write_table(pa.table({name: pa.array(tree[name], types.get(name)) for name in tree}), path)
    return path


def by_rank(lists: TokenLists, k: int) -> tuple[Any, Any]:
    """Ids in their order and probabilities, [n k] both."""
    assert (lists.lengths == k).all()
    return lists.ids.reshape(-1, k), lists.probs.reshape(-1, k)


def one(path: Path, config: DistillKitCompression) -> ImportedRow:
    (row,) = import_distillkit(path, config)
    return row


SMALL = DistillKitCompression(
    300,
    k=4,
    exact_k=2,
    exact_dtype="bfloat16",
    polynomial_terms=(0, 1),
    residual_bins=(ResidualBin("float16", 3, 2),),
    delta_encoding=False,
)
CONFIGS = {
    "budget pick": DistillKitCompression(
        1000, 50, 1, "bfloat16", polynomial_terms=(0, 1, "sqrt"), delta_encoding=False
    ),
    "recommended": DistillKitCompression(
        1000, 128, 16, "bfloat16", polynomial_terms=(0, 1, 2, 3, 4, "sqrt"), delta_encoding=False
    ),
    "quick start": DistillKitCompression(1000, 128, 32, polynomial_terms=(0, 1, 2)),
    "exact": DistillKitCompression(1000, 20, 20, "float64"),
    "residuals": DistillKitCompression(
        1000,
        40,
        8,
        "float16",
        polynomial_terms=(0, "sqrt"),
        residual_bins=(ResidualBin("float32", 7, 11), ResidualBin("bfloat16", 5, 21)),
        delta_encoding=False,
        normalize_t=True,
    ),
    "no terms": DistillKitCompression(1000, 16, 0, residual_bins=(ResidualBin("float32", 12, 16),)),
}


class TestImport:
    def test_reads_bytes_that_were_made_by_hand(self, tmp_path: Path) -> None:
        # 300 tokens take 9 bits: 3, 299, 0 and 256 are 000000011 100101011 000000000 100000000.
        ids = [0b00000001, 0b11001010, 0b11000000, 0b00010000, 0b00000000]
        content = [0x00, 0xBF]  # -0.5 in bfloat16
        content += [0x80, 0xBF]  # -1.0
        content += [0x00, 0x00, 0x00, 0xC0]  # -2.0 in float32: the constant term
        content += [0x00, 0x00, 0x80, 0xBF]  # -1.0: the linear one
        content += [0x00, 0x34]  # 0.25 in float16: the scale
        content += [0b101_010_00]  # 5 and 2, that is 1 and -2 times the scale
        path = write(
            tmp_path / "x.parquet", SMALL, [], input_ids=[[7, 8]], compressed_logprobs=[[content]],
            bytepacked_indices=[[ids]],
        )  # fmt: skip
        row = one(path, SMALL)
        assert row.input_ids.tolist() == [7, 8] and row.segment_lengths.tolist() == [2]
        assert row.lists.lengths.tolist() == [4] and row.lists.ids.tolist() == [0, 3, 256, 299]
        expected = [-2.0 + 0.25, -0.5, -2.0 - 1.0 - 0.5, -1.0]
        np.testing.assert_allclose(np.log(row.lists.probs), expected, rtol=1e-6)

    @pytest.mark.parametrize("name", CONFIGS)
    def test_round_trip(self, name: str, tmp_path: Path) -> None:
        config = CONFIGS[name]
        ids, logprobs = distributions(6, config)
        row = one(write(tmp_path / "x.parquet", config, [(range(7), ids, logprobs)]), config)
        order = np.argsort(ids, -1)
        found, probs = by_rank(row.lists, config.k)
        np.testing.assert_array_equal(found, np.take_along_axis(ids, order, -1))
        stored = np.array([encode(position, config)[1] for position in logprobs])
        expected = np.exp(np.minimum(np.take_along_axis(stored, order, -1), 0.0))
        np.testing.assert_allclose(probs, expected, rtol=1e-4)

    @pytest.mark.parametrize("name", ["exact", "residuals", "no terms"])
    def test_what_is_read_is_close_to_what_was_captured(self, name: str, tmp_path: Path) -> None:
        config = CONFIGS[name]
        ids, logprobs = distributions(6, config)
        _, probs = by_rank(
            one(write(tmp_path / "x.parquet", config, [(range(7), ids, logprobs)]), config).lists, config.k
        )
        expected = np.exp(np.take_along_axis(logprobs, np.argsort(ids, -1), -1))
        np.testing.assert_allclose(probs, expected, rtol=0.02)

    def test_coefficients_of_16_bits_are_multiplied_in_16_bits(self, tmp_path: Path) -> None:
        """As its writer does before it takes the residuals: 1.0078125 * 3 is 3.0234375, in bfloat16 3.03125."""
        terms = {"polynomial_terms": (1,), "term_dtype": "bfloat16", "delta_encoding": False}
        config = DistillKitCompression(300, 4, 0, **terms)
        content = list(float_bytes(-1.0078125, "bfloat16"))
        rows = [([1], [[1, 2, 3, 4]], [[0.0, -1.0, -2.0, -3.0]])]
        row = one(write(tmp_path / "x.parquet", config, rows, compressed_logprobs=[[content]]), config)
        np.testing.assert_allclose(np.log(row.lists.probs), [0.0, -1.0078125, -2.015625, -3.03125], rtol=1e-6)

    @pytest.mark.parametrize("size", [2, 256, 257, 65537, 2**20])
    def test_ids_take_as_many_bits_as_the_vocabulary_needs(self, size: int, tmp_path: Path) -> None:
        config = DistillKitCompression(size, 2, 2, delta_encoding=False)
        assert config.id_bits == math.ceil(math.log2(size))
        path = write(tmp_path / "x.parquet", config, [([0, 0], [[size - 1, 0]], [[-0.5, -1.0]])])
        assert one(path, config).lists.ids.tolist() == [0, size - 1]

    def test_residuals_of_one_bit_are_a_sign(self, tmp_path: Path) -> None:
        config = DistillKitCompression(
            4, 2, 0, residual_bins=(ResidualBin("float32", 1, 2),), polynomial_terms=(0,), delta_encoding=False
        )
        content = struct.pack("<ff", -2.0, 0.5) + bytes([0b10000000])
        path = write(
            tmp_path / "x.parquet",
            config,
            [([0], [[0, 1]], [[-1.0, -2.0]])],
            compressed_logprobs=[[list(content)]],
        )
        np.testing.assert_allclose(np.log(one(path, config).lists.probs), [-1.5, -2.5], rtol=1e-6)

    def test_entries_of_minus_infinity_stand_for_none(self, tmp_path: Path) -> None:
        config = DistillKitCompression(300, 3, 3, delta_encoding=False)
        logprobs = [[-0.5, -math.inf, -math.inf], [-0.1, -3.0, -math.inf]]
        ids = [[9, 511, 9], [8, 2, 2]]  # what stands there was never set
        row = one(write(tmp_path / "x.parquet", config, [([1, 2, 3], ids, logprobs)]), config)
        assert row.lists.lengths.tolist() == [1, 2] and row.lists.ids.tolist() == [9, 2, 8]

    def test_a_value_above_one_becomes_one(self, tmp_path: Path) -> None:
        config = DistillKitCompression(300, 2, 0, polynomial_terms=(0, 1), delta_encoding=False)
        row = one(write(tmp_path / "x.parquet", config, [([1], [[5, 4]], [[0.5, -1.0]])]), config)
        np.testing.assert_allclose(row.lists.probs, [math.exp(-1.0), 1.0], rtol=1e-5)

    def test_packed_rows_have_documents(self, tmp_path: Path) -> None:
        ids, logprobs = distributions(5, SMALL)
        path = write(tmp_path / "x.parquet", SMALL, [(range(5), ids, logprobs)], attention_mask=[[1, 1, 2, 2, 2]])
        row = one(path, SMALL)
        assert row.segment_lengths.tolist() == [2, 3] and len(row.lists.lengths) == 5

    def test_a_folder_is_read_in_the_order_of_its_numbers(self, tmp_path: Path) -> None:
        ids, logprobs = distributions(1, SMALL)
        for number in (10, 9, 2):
            rows = [([number, index], ids, logprobs) for index in range(ROWS_PER_GROUP + 1)]
            write(tmp_path / f"data_{number}.parquet", SMALL, rows)
        found = [row.input_ids.tolist() for row in import_distillkit(tmp_path, SMALL)]
        assert found == [[number, index] for number in (2, 9, 10) for index in range(ROWS_PER_GROUP + 1)]


class TestRefused:
    def test_what_the_file_does_not_know(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="weighting entropy needs the entropy of the full.*uniform or static"):
            import_distillkit(tmp_path, SMALL, weighting="entropy")
        with pytest.raises(DataError, match="kd_temperature 2 needs the full distribution.*set it to 1"):
            import_distillkit(tmp_path, SMALL, kd_temperature=2.0)
        path = write(tmp_path / "x.parquet", SMALL, [([1, 2], *distributions(1, SMALL))])
        assert len(list(import_distillkit(path, SMALL, weighting="static"))) == 1

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"compressed_logprobs": [[[0] * 14]]}, "positions of 14 bytes, by the config 15"),
            ({"bytepacked_indices": [[[0] * 6]]}, "positions of 6 bytes, by the config 5"),
            ({"bytepacked_indices": [[[0] * 5]]}, "a token is listed twice"),
            ({"bytepacked_indices": [[[255] * 5]]}, "token 511 lies outside of the vocabulary of 300"),
            ({"bytepacked_indices": [[[1, 2, 3, 4, None]]]}, "values are missing"),
            ({"bytepacked_indices": [[None]]}, "positions of None bytes"),
            ({"bytepacked_indices": [[]]}, "2 tokens, 0 lists of ids, 1 of probabilities"),
            ({"compressed_logprobs": [[[255] * 15]]}, "is not a number"),
            ({"compressed_logprobs": [[[0, 63] + [0] * 13]]}, "is above 0"),
            ({"input_ids": [[1, 2, 3]]}, "3 tokens, 1 lists of ids"),
            ({"input_ids": [None]}, "input_ids is missing"),
            ({"compressed_logprobs": [None]}, "compressed_logprobs is missing"),
            ({"input_ids": [[1, None]]}, "values are missing"),
            ({"attention_mask": [[1, 0]]}, "padded"),
            ({"attention_mask": [[1, 1, 1]]}, "2 tokens"),
        ],
    )
    def test_rows_that_do_not_fit_the_config(self, change: dict[str, Any], message: str, tmp_path: Path) -> None:
        path = write(tmp_path / "x.parquet", SMALL, [([1, 2], *distributions(1, SMALL))], **change)
        with pytest.raises(DataError, match=f"x.parquet: row 0 cannot be read: .*{message}"):
            list(import_distillkit(path, SMALL))

    def test_the_row_is_named(self, tmp_path: Path) -> None:
        rows = [([1, 2], *distributions(1, SMALL))] * 11 + [([1, 2, 3, 4], *distributions(1, SMALL))]
        with pytest.raises(DataError, match="row 11 cannot be read: 4 tokens"):
            list(import_distillkit(write(tmp_path / "x.parquet", SMALL, rows), SMALL))

    def test_files_that_are_damaged_or_none_of_it(self, tmp_path: Path) -> None:
        path = write(tmp_path / "x.parquet", SMALL, [([1, 2], *distributions(1, SMALL))])
        content = path.read_bytes()
        for damaged in (content[:-9], content[:100], b"", b"PAR1" + content[40:]):
            path.write_bytes(damaged)
            with pytest.raises(DataError, match="x.parquet: row 0 cannot be read"):
                list(import_distillkit(path, SMALL))
        with pytest.raises(DataError, match="y.parquet: row 0 cannot be read"):
            list(import_distillkit(tmp_path / "y.parquet", SMALL))
        (tmp_path / "empty").mkdir()
        with pytest.raises(DataError, match="holds no Parquet file"):
            import_distillkit(tmp_path / "empty", SMALL)

    def test_any_changed_byte_is_an_error_that_names_the_file_or_does_no_harm(self, tmp_path: Path) -> None:
        ids, logprobs = distributions(3, SMALL)
        content = write(tmp_path / "x.parquet", SMALL, [([1, 2, 3, 4], ids, logprobs)]).read_bytes()
        generator, num_errors = np.random.default_rng(0), 0
        for place in range(0, len(content), 3):
            changed = bytearray(content)
            changed[place] ^= int(generator.integers(1, 256))
            (tmp_path / "x.parquet").write_bytes(changed)
            try:
                for row in import_distillkit(tmp_path / "x.parquet", SMALL):
                    lists = row.lists
                    assert lists.lengths.sum() == len(lists.ids) == len(lists.probs)
                    assert (lists.ids < SMALL.vocab_size).all() and (lists.probs <= 1.0).all()
            except DataError as error:
                assert "x.parquet: row" in str(error)
                num_errors += 1
        assert num_errors > 100

    def test_the_older_columns(self, tmp_path: Path) -> None:
        table = pa.table({name: [[1]] for name in ("input_ids", "packed_indices", "exact_values", "coeffs")})
        pq.write_table(table, tmp_path / "x.parquet")
        with pytest.raises(
            DataError, match="there is no column compressed_logprobs, but input_ids, packed_indices"
        ):
            list(import_distillkit(tmp_path / "x.parquet", SMALL))

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"vocab_size": 3}, "vocab_size is below 2 or k"),
            ({"exact_k": 5}, "k is below 1 or exact_k"),
            ({"exact_k": 3}, "nothing stands for ranks"),
            ({"exact_k": 3, "residual_bins": (ResidualBin("float32", 4, 2),)}, "more than k - exact_k ranks"),
            ({"exact_k": 3, "residual_bins": (ResidualBin("float32", 64, 1),)}, "element_bits lie outside"),
            ({"exact_dtype": "int8"}, "a type is unknown"),
            ({"polynomial_terms": ("log",)}, "a term is unknown"),
        ],
    )
    def test_a_config_that_fits_nothing(self, fields: dict[str, Any], message: str) -> None:
        with pytest.raises(DataError, match=f"{message}.*compression_config.yaml"):
            DistillKitCompression(**{"vocab_size": 300, "k": 4, "exact_k": 4, **fields})
