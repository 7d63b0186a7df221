"""What a cache holds depends on text, teacher and settings alone: not on ranks, batches, disks or stops."""

import errno
import json
import os
import shutil
import signal
import time
from collections import namedtuple
from collections.abc import Iterator

import fsspec
import numpy as np
import pytest
import torch

from collegium.base.errors import BusyError, DataError, DiskError
from collegium.cache.builder import CacheProgress, Ranks
from collegium.cache.folder import Folder
from collegium.cache.manifest import read_manifest
from collegium.cache.reader import CacheReader
from collegium.cache.records import num_shards
from collegium.cache.verify import repair, verify
from collegium.data.collate import BlockCollator
from collegium.teachers.cached import CachedTeacher
from tests.support.caches import (
    MODES,
    ROWS_PER_SHARD,
    CountingTeacher,
    Zygote,
    all_rows,
    builder_of,
    collate,
    content_of,
    pico_teacher,
    plan_of,
    plan_with,
    stamps_of,
)


NUM_BLOCKS = len(all_rows())
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    process = Zygote()
    yield process
    process.close()


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> dict[str, dict[str, bytes]]:
    """Files of a cache of each mode."""
    found = {}
    for mode in MODES:
        folder = tmp_path_factory.mktemp(mode)
        builder_of(folder, plan_of(mode), batch_size=2).build()
        found[mode] = content_of(folder)
    return found


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


class Stopped(Exception):
    """Ends a build from outside."""


def stop_after(num_rows: int):
    def stop(progress: CacheProgress) -> None:
        if progress.rows >= num_rows:
            raise Stopped

    return stop


def begin(folder, plan=None) -> None:
    """A cache that is half made."""
    with pytest.raises(Stopped):
        builder_of(folder, plan, on_progress=stop_after(10), batch_size=2).build()
    assert (folder / "begun.json").exists()


# Ranks and batches.


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [2, 3, 8])
def test_same_bytes_whatever_the_number_of_ranks(folder, expected, zygote, mode, size):
    """With eight, two of them have nothing to do."""
    log = folder.with_name("log")
    assert zygote.run(folder, ranks=size, mode=mode, log=str(log)) == 0
    assert content_of(folder) == expected[mode]
    assert len(log.read_text().split()) == NUM_BLOCKS + (mode == "hidden_states")


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1)])
def test_ranks_one_behind_the_other(folder, expected, order):
    """They wait for nobody: each does its own, and says that the cache is not finished."""
    for rank in order:
        with pytest.raises(DataError, match="was not written.* run the same command again"):
            builder_of(folder, ranks=Ranks(rank, 3), batch_size=2).build()
    teacher = CountingTeacher(pico_teacher())
    builder_of(folder, ranks=Ranks(0, 3), teacher=teacher).build()
    assert teacher.num_blocks == 0
    assert content_of(folder) == expected["top_k"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("batch_size", [1, 3, 4, 64])
def test_same_bytes_whatever_the_batch_size(folder, expected, mode, batch_size):
    builder_of(folder, plan_of(mode), batch_size=batch_size).build()
    assert content_of(folder) == expected[mode]


@pytest.mark.parametrize("mode", MODES)
def test_every_rank_returns_the_manifest_that_is_written(folder, mode):
    manifest = builder_of(folder, plan_of(mode)).build()
    assert manifest == read_manifest(Folder.at(folder))
    assert sum(shard.rows for shard in manifest.shards) == NUM_BLOCKS
    assert builder_of(folder, plan_of(mode), ranks=Ranks(1, 2)).build() == manifest


def test_shards_of_another_size_hold_the_same_rows(tmp_path):
    for size in (1, 4, 5, 100):
        builder_of(tmp_path / str(size), plan_of(rows_per_shard=size)).build()
    readers = [CacheReader(tmp_path / str(size)) for size in (1, 4, 5, 100)]
    for index in range(NUM_BLOCKS):
        assert len({reader.row(index).digest for reader in readers}) == 1
    assert [len(reader.manifest.shards) for reader in readers] == [21, 6, 5, 1]


@pytest.mark.parametrize("mode", MODES)
def test_a_block_is_stored_alike_wherever_it_stands(tmp_path, mode):
    """Draws too, as their seed is the block's."""
    builder_of(tmp_path / "a", plan_of(mode)).build()
    builder_of(tmp_path / "b", plan_of(mode), rows=all_rows()[::-1]).build()
    there, back = CacheReader(tmp_path / "a"), CacheReader(tmp_path / "b")
    for index in range(NUM_BLOCKS):
        assert there.row(index).digest == back.row(NUM_BLOCKS - 1 - index).digest


def test_draws_are_of_the_block_and_of_the_seed(tmp_path):
    """Two blocks begin the same, so the teacher's first distribution is the same, and is drawn from again."""
    rows = [dict(row, input_ids=[all_rows()[0]["input_ids"][0], *row["input_ids"][1:]]) for row in all_rows()[:2]]
    first = []
    for seed in (0, 1):
        plan = plan_with(plan_of("sampled", seed=seed), splits={"train": 2})
        builder_of(tmp_path / str(seed), plan, rows=rows).build()
        stored = [CacheReader(tmp_path / str(seed)).row(index).arrays for index in (0, 1)]
        assert stored[0]["entropy"][0] == stored[1]["entropy"][0]
        first += [tuple(arrays["gaps"][: arrays["lengths"][0]]) for arrays in stored]
    assert len(set(first)) == 4


def test_a_block_that_comes_twice_is_read(folder):
    rows = [*all_rows()[:5], *all_rows()[:5]]
    plan = plan_with(plan_of(), splits={"train": 10})
    builder_of(folder, plan, rows=rows).build()
    reader = CacheReader(folder)
    for index in range(5):
        assert reader.row(index).digest == reader.row(index + 5).digest
        assert reader.read(reader.row(index).key).digest == reader.row(index).digest


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_of_a_batch_that_is_read_changes_nothing(folder, side):
    builder_of(folder, plan_of("top_k")).build()
    cached, padding = CachedTeacher("pico", folder), BlockCollator(pad_token_id=3, padding_side=side, pad_to=20)
    for index, row in enumerate(all_rows()):
        found, alone = cached.read(padding([row])), cached.read(collate([row]))
        assert all(torch.equal(found[name], alone[name]) for name in alone), index


def test_resumed_by_a_different_number_of_ranks(folder, expected, zygote):
    begin(folder)
    assert zygote.run(folder, ranks=3) == 0
    assert content_of(folder) == expected["top_k"]


# What is loaded and scored.


@pytest.mark.parametrize("mode", MODES)
def test_each_block_is_scored_once_by_a_teacher_loaded_once(folder, mode):
    teacher = CountingTeacher(pico_teacher())
    builder_of(folder, plan_of(mode), teacher=teacher).build()
    assert teacher.num_loads == 1
    assert teacher.num_blocks == NUM_BLOCKS + (mode == "hidden_states")


def test_a_finished_cache_loads_and_writes_nothing(folder):
    builder_of(folder).build()
    before, teacher = stamps_of(folder), CountingTeacher(pico_teacher())
    builder_of(folder, teacher=teacher).build()
    assert teacher.num_loads == 0
    assert {**stamps_of(folder), ".lock": None} == {**before, ".lock": None}


@pytest.mark.parametrize(
    "name", [".manifest.json.tmp", "shards/.shard-00003.parquet.tmp", "shards/shard-00003.json"]
)
@pytest.mark.parametrize("fix", [lambda builder: builder.build(), repair], ids=["build", "repair"])
def test_what_a_killed_process_left_in_a_finished_cache_is_removed(folder, expected, name, fix):
    builder_of(folder, batch_size=2).build()
    (folder / name).write_bytes(b"half")
    fix(builder_of(folder, batch_size=2))
    assert content_of(folder) == expected["top_k"]


@pytest.mark.parametrize("num_rows", [1, 4, 7, 12, 20])
def test_stopped_and_resumed_scores_what_is_missing(folder, expected, num_rows):
    with pytest.raises(Stopped):
        builder_of(folder, on_progress=stop_after(num_rows), batch_size=1).build()
    teacher = CountingTeacher(pico_teacher())
    builder_of(folder, teacher=teacher, batch_size=1).build()
    done = (num_rows - 1) // ROWS_PER_SHARD * ROWS_PER_SHARD  # a shard counts when its file is there
    assert teacher.num_blocks == NUM_BLOCKS - done
    assert content_of(folder) == expected["top_k"]


@pytest.mark.parametrize("harm", ["cut", "empty", "gone", "other json"])
def test_a_shard_or_record_that_is_broken_halfway_is_scored_again(folder, expected, harm):
    begin(folder)
    shard, record = (folder / "shards" / f"shard-00000.{ending}" for ending in ("parquet", "json"))
    if harm == "cut":
        shard.write_bytes(shard.read_bytes()[:-7])
    elif harm == "empty":
        record.write_bytes(b"")
    elif harm == "gone":
        record.unlink()
    else:
        record.write_bytes(b"[1]")
    builder_of(folder, batch_size=2).build()
    assert content_of(folder) == expected["top_k"]


def test_unfinished_cache_is_not_read(folder):
    begin(folder)
    with pytest.raises(DataError, match="holds no finished cache; `collegium cache RECIPE` makes one"):
        CachedTeacher("pico", folder)


def test_repair_finishes_what_was_begun(folder, expected):
    begin(folder)
    teacher = CountingTeacher(pico_teacher())
    repair(builder_of(folder, teacher=teacher, batch_size=2))
    assert teacher.num_blocks == NUM_BLOCKS - 2 * ROWS_PER_SHARD
    assert content_of(folder) == expected["top_k"]


def test_progress_is_told(folder):
    reported: list[CacheProgress] = []
    builder_of(folder, on_progress=reported.append, batch_size=2).build()
    assert [progress.rows for progress in reported] == sorted({progress.rows for progress in reported})
    last = reported[-1]
    assert (last.rows, last.num_rows, last.seconds_left) == (NUM_BLOCKS, NUM_BLOCKS, 0.0)
    assert last.tokens == sum(shard.tokens for shard in read_manifest(Folder.at(folder)).shards)
    assert all(progress.bytes > 0 for progress in reported)


# Whose folder it is.


def test_two_writers(folder, expected, zygote):
    hold = folder.with_name("hold")
    pid = zygote.start(folder, hold=str(hold), batch_size=2)
    while not hold.exists():
        time.sleep(0.005)
    try:
        for action in (lambda: builder_of(folder).build(), lambda: repair(builder_of(folder))):
            started = time.monotonic()
            with pytest.raises(
                BusyError, match=f"{folder}: is being written by process {pid} on .*: wait until it ends"
            ):
                action()
            assert time.monotonic() - started < 2
    finally:
        hold.unlink()
    assert zygote.wait() == 0
    assert content_of(folder) == expected["top_k"]


def test_writer_that_was_killed_is_no_writer(folder, expected, zygote):
    hold = folder.with_name("hold")
    pid = zygote.start(folder, hold=str(hold), batch_size=2)
    while not hold.exists():
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    assert zygote.wait() == -signal.SIGKILL
    assert json.loads((folder / ".lock").read_text())["process"] == pid
    builder_of(folder, batch_size=2).build()
    assert content_of(folder) == expected["top_k"]


@pytest.mark.parametrize(
    "name",
    [
        "notes.txt",
        "shards/shard-00000.parquet",
        "shards/shard-00000.json",
        ".x.tmp",
        ".hidden",
        "train/data.arrow",
    ],
)
def test_folder_with_files_of_others_is_refused(folder, name):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("mine")
    teacher = CountingTeacher(pico_teacher())
    with pytest.raises(DataError, match=f"{folder}/{name}: lies where a cache is to be made; give a folder"):
        builder_of(folder, teacher=teacher).build()
    assert teacher.num_loads == 0
    assert {name: content for name, content in content_of(folder).items() if name != ".lock"} == {name: b"mine"}


def other_plans():
    plan = plan_of()
    return {
        "teacher": (
            plan_with(plan, teacher=plan_with(plan.teacher, fingerprint="pico-2")),
            "teacher pico-1, now pico-2",
        ),
        "text": (plan_with(plan, text="text-2"), "text text-1, now text-2"),
        "splits": (
            plan_with(plan, splits={"train": 20}),
            "splits {'train': 17, 'held_out/text': 4}, now {'train': 20}",
        ),
        "mode": (plan_of("sampled"), "mode top_k, now sampled"),
        "max_kept": (plan_of(max_kept=8), "max_kept 16, now 8"),
        "min_probability": (plan_of(min_probability=0.5), "min_probability 0.001, now 0.5"),
        "kd_temperature": (plan_of(kd_temperature=2.0), "kd_temperature 1.0, now 2.0"),
        "rows_per_shard": (plan_of(rows_per_shard=3), "rows_per_shard 4, now 3"),
        "seed": (plan_of(seed=1), "seed 0, now 1"),
    }


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("what", other_plans())
def test_cache_of_something_else_is_refused(folder, what, finished):
    if finished:
        builder_of(folder).build()
    else:
        begin(folder)
    before = content_of(folder)
    plan, message = other_plans()[what]
    teacher = CountingTeacher(pico_teacher())
    with pytest.raises(DataError) as caught:
        builder_of(folder, plan, teacher=teacher).build()
    assert str(caught.value) == (
        f"{folder}: holds a cache with {message} is asked for: give another cache.directory, or delete it"
    )
    assert teacher.num_loads == 0
    assert content_of(folder) == before


def test_a_damaged_manifest_is_refused_with_a_way_out(folder):
    builder_of(folder).build()
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b"text-1", b"text-2"))
    before = content_of(folder)
    match = "manifest.json: is damaged: its checksum is wrong; run `collegium cache repair"
    with pytest.raises(DataError, match=match):
        builder_of(folder).build()
    assert content_of(folder) == before


def test_a_damaged_plan_is_written_again_and_nothing_is_lost(folder, expected):
    begin(folder)
    path = folder / "begun.json"
    path.write_bytes(path.read_bytes().replace(b"text-1", b"text-2"))
    shards = {name: stamp for name, stamp in stamps_of(folder).items() if name.endswith(".parquet")}
    assert shards
    builder_of(folder).build()
    assert content_of(folder) == expected["top_k"]
    assert shards.items() <= stamps_of(folder).items()


@pytest.mark.parametrize("damaged", ["manifest.json", "begun.json"])
def test_with_a_damaged_plan_shards_still_say_whose_they_are(folder, damaged):
    if damaged == "manifest.json":
        builder_of(folder).build()
    else:
        begin(folder)
    (folder / damaged).write_bytes(b"{")
    before = content_of(folder)
    other = builder_of(folder, plan_with(plan_of(), text="text-2"))
    with pytest.raises(DataError, match="shard-00000.parquet: belongs to another cache"):
        repair(other)
    assert content_of(folder) == before


def test_a_finished_cache_gets_its_damaged_source_again(folder, expected):
    builder_of(folder).build()
    (folder / "source.yaml").write_bytes(b"gone")
    builder_of(folder).build()
    assert content_of(folder) == expected["top_k"]
    (folder / "source.yaml").unlink()
    builder_of(folder).build()
    assert content_of(folder) == expected["top_k"]


def test_a_process_that_does_not_see_the_folder_says_so(tmp_path):
    with pytest.raises(DataError, match="process 1 does not see what the first one wrote"):
        builder_of(tmp_path / "elsewhere", ranks=Ranks(1, 2)).build()


def test_a_file_is_no_folder(tmp_path):
    path = tmp_path / "file"
    path.write_text("text")
    with pytest.raises(DataError, match="is a file; give the folder of a cache"):
        CacheReader(path)


def test_a_row_that_there_is_not(folder):
    manifest = builder_of(folder).build()
    for index in (-1, manifest.num_rows):
        with pytest.raises(IndexError):
            CacheReader(folder).row(index)


def test_what_cannot_be_read_is_damage(folder, monkeypatch):
    builder_of(folder).build()
    digest = Folder.digest

    def fails(self, name):
        if name.endswith("shard-00001.parquet"):
            raise OSError(errno.EIO, "Input/output error")
        return digest(self, name)

    monkeypatch.setattr(Folder, "digest", fails)
    (damage,) = verify(Folder.at(folder)).damages
    assert (damage.name, damage.reason) == (
        "shards/shard-00001.parquet",
        "it cannot be read (Input/output error)",
    )


# Disks.


def failing(original, code: int, left: int):
    """A system call that fails with `code` after `left` calls."""
    remaining = iter(range(left))

    def call(*arguments):
        if next(remaining, None) is None:
            raise OSError(code, os.strerror(code))
        return original(*arguments)

    return call


@pytest.mark.parametrize("mode", ["top_k", "hidden_states"])
@pytest.mark.parametrize(
    ("call", "code"), [("fsync", errno.ENOSPC), ("fsync", errno.EDQUOT), ("replace", errno.EROFS)]
)
def test_full_or_read_only_disk_leaves_whole_files_and_resumes(folder, expected, monkeypatch, mode, call, code):
    num_failures = 0
    for left in range(0, 60, 4):
        target = folder.with_name(f"cache-{left}")
        with monkeypatch.context() as patch:
            patch.setattr(os, call, failing(getattr(os, call), code, left))
            try:
                builder_of(target, plan_of(mode), batch_size=2).build()
            except OSError as error:
                assert error.errno == code and str(target) in error.filename
                num_failures += 1
        found = content_of(target)
        assert not any(name.endswith(".tmp") for name in found)
        assert all(content == expected[mode][name] for name, content in found.items() if name.endswith(".parquet"))
        builder_of(target, plan_of(mode), batch_size=2).build()
        assert content_of(target) == expected[mode]
    assert num_failures >= 4


@pytest.mark.parametrize("max_file_bytes", [100, 3_000, 5_560])
def test_file_that_cannot_grow(folder, expected, zygote, max_file_bytes):
    """In begun.json, in the first shard, in the second."""
    assert zygote.run(folder, max_file_bytes=max_file_bytes) == errno.EFBIG
    found = content_of(folder)
    assert not any(name.endswith(".tmp") or len(content) >= max_file_bytes for name, content in found.items())
    builder_of(folder, batch_size=2).build()
    assert content_of(folder) == expected["top_k"]


def test_full_disk_during_repair(folder, expected, monkeypatch):
    builder_of(folder, batch_size=2).build()
    for number in (1, 4):
        (folder / f"shards/shard-0000{number}.parquet").write_bytes(b"")
    for left in (0, 1, 1):  # nothing, the first shard, the second
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", failing(os.replace, errno.ENOSPC, left))
            with pytest.raises(OSError, match="No space left on device"):
                repair(builder_of(folder, batch_size=2))
        assert not any(name.endswith(".tmp") for name in content_of(folder))
    repair(builder_of(folder, batch_size=2))
    assert content_of(folder) == expected["top_k"]


def test_too_small_a_disk_is_noticed_after_the_first_batch(folder, expected, monkeypatch):
    reported: list[CacheProgress] = []
    builder_of(folder.with_name("other"), on_progress=reported.append, batch_size=2).build()
    estimate = reported[0].bytes
    teacher = CountingTeacher(pico_teacher())
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: Usage(10**6, 0, int(estimate) - 1))
        with pytest.raises(
            DiskError, match=f"{folder}: the cache needs about .* GB more, .* GB are free; make room"
        ):
            builder_of(folder, teacher=teacher, batch_size=2).build()
    assert teacher.num_blocks == 2
    builder_of(folder, batch_size=2).build()
    assert content_of(folder) == expected["top_k"]


def test_a_resumed_build_needs_room_for_the_rest_only(folder, expected, monkeypatch):
    begin(folder)  # 8 of 21 blocks
    reported: list[CacheProgress] = []
    builder_of(folder.with_name("other"), on_progress=reported.append, batch_size=2).build()
    rest = reported[0].bytes * 13 / 21
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**6, 0, int(rest * 0.8)))
    with pytest.raises(DiskError):
        builder_of(folder, batch_size=2).build()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**6, 0, int(rest * 1.2)))
    builder_of(folder, batch_size=2).build()
    assert content_of(folder) == expected["top_k"]


# Elsewhere than on disk.


@pytest.fixture
def memory():
    """A URL in memory; nothing is left there."""
    yield "memory://bucket/cache"
    fsspec.filesystem("memory").store.clear()


def content_at(url: str) -> dict[str, bytes]:
    folder = Folder.at(url)
    return {name: folder.read(name) for name in folder.names()}


@pytest.mark.parametrize("mode", MODES)
def test_a_cache_at_a_url_holds_the_same(memory, expected, mode):
    builder_of(memory, plan_of(mode), batch_size=2).build()
    assert {**content_at(memory), ".lock": b""} == expected[mode]
    assert verify(Folder.at(memory)).damages == verify(Folder.at(memory)).strangers == ()


@pytest.mark.parametrize("mode", MODES)
def test_a_cache_at_a_url_is_read_as_on_disk(memory, folder, mode):
    builder_of(memory, plan_of(mode)).build()
    builder_of(folder, plan_of(mode)).build()
    there, here = CacheReader(memory), CacheReader(folder)
    teachers = [CachedTeacher("pico", location) for location in (memory, folder)]
    for index in np.random.default_rng(0).permutation(NUM_BLOCKS):
        assert there.row(int(index)).digest == here.row(int(index)).digest
        found, wanted = (teacher.read(collate([all_rows()[index]])) for teacher in teachers)
        assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("name", ["shards/shard-00002.parquet", "index.parquet", "source.yaml", "manifest.json"])
@pytest.mark.parametrize("harm", ["flipped", "cut", "gone"])
def test_a_cache_at_a_url_is_repaired(memory, expected, name, harm):
    builder_of(memory, batch_size=2).build()
    folder, content = Folder.at(memory), expected["top_k"][name]
    place = len(content) // 10  # of a shard, in a column
    if harm == "gone":
        folder.remove(name)
    else:
        folder.write(
            name,
            content[:-9]
            if harm == "cut"
            else content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :],
        )
    if name == "manifest.json":
        with pytest.raises(DataError, match="memory://bucket/cache(/manifest.json: is damaged|: holds no)"):
            CacheReader(memory)
    else:
        assert [damage.name for damage in verify(folder).damages] == [name]
    if name.startswith("shards"):
        with pytest.raises(
            DataError, match=f"memory://bucket/cache/{name}: is damaged.*repair memory://bucket/cache"
        ):
            CacheReader(memory).row(9)
    teacher = CountingTeacher(pico_teacher())
    repair(builder_of(memory, teacher=teacher, batch_size=2))
    assert teacher.num_blocks == (ROWS_PER_SHARD if name.startswith("shards") else 0)
    assert {**content_at(memory), ".lock": b""} == expected["top_k"]


def test_a_build_at_a_url_is_resumed(memory, expected):
    with pytest.raises(Stopped):
        builder_of(memory, on_progress=stop_after(10), batch_size=2).build()
    teacher = CountingTeacher(pico_teacher())
    builder_of(memory, teacher=teacher, batch_size=2).build()
    assert teacher.num_blocks == NUM_BLOCKS - 2 * ROWS_PER_SHARD
    assert {**content_at(memory), ".lock": b""} == expected["top_k"]


def test_others_at_a_url_are_refused(memory):
    Folder.at(memory).write("notes.txt", b"mine")
    with pytest.raises(DataError, match="memory://bucket/cache/notes.txt: lies where a cache is to be made"):
        builder_of(memory).build()
    Folder.at(memory).remove("notes.txt")
    builder_of(memory).build()
    with pytest.raises(
        DataError, match="memory://bucket/cache: holds a cache with max_kept 16, now 8 is asked for"
    ):
        builder_of(memory, plan_of(max_kept=8)).build()


def test_number_of_shards():
    assert num_shards(plan_of()) == 6
    assert num_shards(plan_of(rows_per_shard=21)) == 1
