"""Damage is found by `verify`, never believed by a reader, and repaired by `repair` at the least cost."""

import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from collegium.base.errors import DataError
from collegium.cache import reader as reader_module
from collegium.cache.folder import Folder
from collegium.cache.keys import key_of
from collegium.cache.manifest import MANIFEST_NAME, Manifest
from collegium.cache.reader import CacheReader
from collegium.cache.shard import StoredRow
from collegium.cache.verify import repair, verify
from collegium.teachers.cached import CachedTeacher
from tests.support.caches import (
    MODES,
    ROWS_PER_SHARD,
    SOURCE,
    CountingTeacher,
    all_rows,
    builder_of,
    collate,
    content_of,
    pico_teacher,
    plan_of,
    stamps_of,
)


NUM_FLIPS = NUM_TRUNCATIONS = 150
NUM_READS = 10_000
SHARD = "shards/shard-{:05d}.parquet"


@dataclass
class Sample:
    """A whole cache, what is in it, and a folder with a copy to damage."""

    mode: str
    folder: Path
    files: dict[str, bytes]
    rows: list[StoredRow]
    tensors: list[dict[str, torch.Tensor]]
    logits: list[torch.Tensor]
    teacher: CountingTeacher

    @property
    def names(self) -> list[str]:
        return [name for name in self.files if name != ".lock"]

    def builder(self):
        return builder_of(self.folder, plan_of(self.mode), teacher=self.teacher)

    def damages(self) -> dict[str, str]:
        """What `verify` says of each file, by name."""
        return {damage.name: damage.reason for damage in verify(Folder.at(self.folder)).damages}

    def repair(self) -> tuple[list[str], int]:
        """Files that were written and blocks that were scored; the folder must be as it was."""
        before, scored = stamps_of(self.folder), self.teacher.num_blocks
        written = list(repair(self.builder())[1])
        after = stamps_of(self.folder)
        assert content_of(self.folder) == self.files
        assert {name for name in after if after[name] != before.get(name)} - {".lock"} == set(written)
        assert self.damages() == {}
        return written, self.teacher.num_blocks - scored


def inputs_of(row):
    return collate([row])


def logits_of(cached: CachedTeacher) -> list[torch.Tensor]:
    """What follows from a stored head; nothing in the other modes."""
    return [] if cached._head is None else [cached._head(torch.ones(1, cached.underlying_model.hidden_size))]


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> dict[str, Sample]:
    found, model = {}, pico_teacher()
    for mode in MODES:
        folder, teacher = tmp_path_factory.mktemp(mode), CountingTeacher(model)
        builder_of(folder, plan_of(mode), teacher=teacher).build()
        reader, cached = CacheReader(folder), CachedTeacher("pico", folder)
        found[mode] = Sample(
            mode,
            folder,
            content_of(folder),
            [reader.row(index) for index in range(len(reader))],
            [cached.read(inputs_of(row)) for row in all_rows()],
            logits_of(cached),
            teacher,
        )
    return found


@pytest.fixture
def sample(request, samples):
    """A cache that is whole again afterwards, whatever the test did."""
    found = samples[request.param]
    yield found
    if content_of(found.folder) != found.files:
        shutil.rmtree(found.folder)
        for name, content in found.files.items():
            (found.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (found.folder / name).write_bytes(content)


@pytest.fixture(autouse=True)
def no_flushing(monkeypatch):
    """Matters for power loss only and takes most of the time."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


in_lists_and_states = pytest.mark.parametrize("sample", ["top_k", "hidden_states"], indirect=True)
in_every_mode = pytest.mark.parametrize("sample", MODES, indirect=True)
in_lists = pytest.mark.parametrize("sample", ["top_k"], indirect=True)


def equal_rows(found: StoredRow, wanted: StoredRow) -> bool:
    return (
        found.key == wanted.key
        and list(found.arrays) == list(wanted.arrays)
        and all(
            found.arrays[name].dtype == array.dtype and found.arrays[name].tobytes() == array.tobytes()
            for name, array in wanted.arrays.items()
        )
    )


def equal_tensors(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def read_or_refuse(sample: Sample) -> int:
    """Read every row both ways: each is right or refused in one line; the number that is refused."""
    refused = 0

    def attempt(read):
        nonlocal refused
        try:
            return read()
        except DataError as error:
            assert "\n" not in str(error) and f"run `collegium cache repair {sample.folder}`" in str(error)
            refused += 1

    reader = attempt(lambda: CacheReader(sample.folder))
    cached = attempt(lambda: CachedTeacher("pico", sample.folder))
    for index, row in enumerate(all_rows()):
        stored = reader and attempt(lambda index=index: reader.row(index))
        assert stored is None or equal_rows(stored, sample.rows[index])
        tensors = cached and attempt(lambda row=row: cached.read(inputs_of(row)))
        assert tensors is None or equal_tensors(tensors, sample.tensors[index])
    if cached is not None:
        assert all(map(torch.equal, logits_of(cached), sample.logits))
    return refused


def flipped(content: bytes, generator: random.Random) -> bytes:
    place = generator.randrange(len(content))
    return content[:place] + bytes([content[place] ^ (1 << generator.randrange(8))]) + content[place + 1 :]


def truncated(content: bytes, generator: random.Random) -> bytes:
    return content[: generator.randrange(len(content))]


def check_found_and_repaired(sample: Sample, name: str) -> int:
    """One damaged file: found, never believed, repaired at the least cost; the number of refused reads."""
    if name == MANIFEST_NAME:
        with pytest.raises(DataError, match=f"{sample.folder}/manifest.json: is damaged"):
            verify(Folder.at(sample.folder))
    else:
        assert list(sample.damages()) == [name]
    refused = read_or_refuse(sample)
    written, num_blocks = sample.repair()
    if name == MANIFEST_NAME:  # it alone knew the checksums of the others
        assert set(written) == {name for name in sample.names if not name.startswith("shards/")}
    else:
        assert written == [name]
    shard_blocks = num_rows_of(sample, name)
    head_blocks = sample.mode == "hidden_states" and name in ("head.safetensors", MANIFEST_NAME)
    assert num_blocks == shard_blocks + head_blocks
    return refused


def num_rows_of(sample: Sample, name: str) -> int:
    shards = Manifest.from_bytes(sample.files[MANIFEST_NAME]).shards
    return sum(shard.rows for shard in shards if shard.name == name)


@in_lists_and_states
@pytest.mark.parametrize("harm", [flipped, truncated])
def test_damage_is_found_and_never_believed_and_repaired(sample, harm):
    generator = random.Random(f"{sample.mode} {harm.__name__}")
    names = sample.names
    refused = dict.fromkeys(names, 0)
    for trial in range(NUM_FLIPS):
        name = names[trial % len(names)]
        (sample.folder / name).write_bytes(harm(sample.files[name], generator))
        refused[name] += check_found_and_repaired(sample, name) > 0
    assert min(number for name, number in refused.items() if name != "source.yaml") > 0
    assert refused["source.yaml"] == 0  # nobody reads it


@in_every_mode
def test_page_headers_and_footer_are_guarded(sample):
    """They have no checksum of Parquet's; this is where a parser could crash, or read something else."""
    name = SHARD.format(5)
    content, path = sample.files[name], sample.folder / name
    reader = CacheReader(sample.folder)
    generator = random.Random(3)
    places = [place for place in range(len(content)) if generator.random() < 0.1]
    for place in places:
        path.write_bytes(content[:place] + bytes([content[place] ^ (1 << place % 8)]) + content[place + 1 :])
        assert list(sample.damages()) == [name]
        reader = CacheReader(sample.folder)
        try:
            assert equal_rows(reader.row(20), sample.rows[20])
        except DataError as error:
            assert name in str(error)
    path.write_bytes(content)
    assert equal_rows(reader.row(20), sample.rows[20])


@in_lists
def test_rows_that_cannot_be_read_are_named(sample):
    path = sample.folder / SHARD.format(1)
    content = sample.files[SHARD.format(1)]
    path.write_bytes(content[: len(content) // 2])
    (damage,) = verify(Folder.at(sample.folder)).damages
    assert (damage.name, damage.rows) == (SHARD.format(1), (4, 5, 6, 7))
    path.write_bytes(content)
    assert verify(Folder.at(sample.folder)).damages == ()


@in_lists_and_states
def test_several_files_are_repaired_at_once(sample):
    generator = random.Random(7)
    for _ in range(20):
        names = generator.sample([name for name in sample.names if name != MANIFEST_NAME], 3)
        for name in names:
            (sample.folder / name).write_bytes(
                generator.choice([flipped, truncated])(sample.files[name], generator)
            )
        assert set(sample.damages()) == set(names)
        written, num_blocks = sample.repair()
        assert set(written) == set(names)
        assert num_blocks == sum(num_rows_of(sample, name) + (name == "head.safetensors") for name in names)


@in_lists_and_states
def test_manifest_and_shards_that_are_damaged_together_are_repaired(sample):
    generator = random.Random(8)
    for shard in range(6):
        for name in (SHARD.format(shard), MANIFEST_NAME):
            (sample.folder / name).write_bytes(truncated(sample.files[name], generator))
        written, num_blocks = sample.repair()
        assert {SHARD.format(shard), MANIFEST_NAME} <= set(written)
        assert num_blocks == num_rows_of(sample, SHARD.format(shard)) + (sample.mode == "hidden_states")


@in_every_mode
def test_repair_of_a_whole_cache_writes_and_loads_nothing(sample):
    loads = sample.teacher.num_loads
    assert sample.repair() == ([], 0)
    assert sample.teacher.num_loads == loads


@in_every_mode
def test_ten_thousand_reads_without_a_false_alarm(sample):
    generator = random.Random(4)
    cached = CachedTeacher("pico", sample.folder)
    reader = CacheReader(sample.folder)
    digests = [row.digest for row in sample.rows]
    for _ in range(NUM_READS):
        index = generator.randrange(len(sample.rows))
        assert reader.read(sample.rows[index].key).digest == digests[index]
    for _ in range(500):
        indices = generator.choices(range(len(sample.rows)), k=generator.randint(1, 4))
        for index in indices:
            assert equal_tensors(cached.read(inputs_of(all_rows()[index])), sample.tensors[index])
    assert sample.damages() == {}


def test_more_shards_than_files_are_kept_open(tmp_path):
    plan = plan_of(rows_per_shard=1)
    builder_of(tmp_path, plan).build()
    reader, generator = CacheReader(tmp_path), random.Random(5)
    keys = [reader.row(index).key for index in range(len(reader))]
    assert len(reader.manifest.shards) == 21
    for _ in range(2000):
        index = generator.randrange(len(keys))
        assert reader.row(index).key == keys[index]


@in_every_mode
def test_blocks_read_before_are_kept_within_a_limit_of_memory(sample, monkeypatch):
    keys = [row.key for row in sample.rows]
    unlimited = CacheReader(sample.folder)
    reads: list[int] = []
    read_row = CacheReader.row
    monkeypatch.setattr(CacheReader, "row", lambda self, index: reads.append(index) or read_row(self, index))
    for _ in range(3):
        assert all(map(equal_rows, map(unlimited.read, keys), sample.rows))
    assert reads == list(range(len(keys)))
    reads.clear()
    monkeypatch.setattr(reader_module, "KEPT_BYTES", sum(row.num_bytes for row in sample.rows[:3]))
    limited = CacheReader(sample.folder)
    for key in (*keys[:3], *keys[:3], *keys):
        limited.read(key)
    assert len(reads) == len(keys)
    limited.read(keys[0])  # gone long since
    assert len(reads) == len(keys) + 1
    assert limited._kept_bytes <= reader_module.KEPT_BYTES


def keys_of_rows():
    return [
        key_of(row["input_ids"][0].numpy(), row["position_ids"][0].numpy()) for row in map(inputs_of, all_rows())
    ]


@in_every_mode
def test_blocks_are_found_by_their_tokens(sample):
    reader = CacheReader(sample.folder)
    assert [reader.find(key) for key in keys_of_rows()] == list(range(len(reader)))
    with pytest.raises(DataError, match="holds no block with these tokens.*fingerprint text-1"):
        reader.read(12345)


def damage_by_hand(sample: Sample, kind: str, tmp_path: Path) -> dict[str, str]:
    """Do it; what `verify` must say of each file."""
    first, second = (sample.folder / SHARD.format(number) for number in (1, 3))
    if kind == "missing shard":
        first.unlink()
        return {SHARD.format(1): "it is missing"}
    if kind == "empty shard":
        first.write_bytes(b"")
        return {SHARD.format(1): f"it has 0 bytes, not {len(sample.files[SHARD.format(1)])}"}
    if kind == "swapped shards":
        first.write_bytes(sample.files[SHARD.format(3)])
        second.write_bytes(sample.files[SHARD.format(1)])
        return {SHARD.format(1): "", SHARD.format(3): ""}
    if kind == "shard of another cache":
        builder_of(tmp_path, plan_of(sample.mode, seed=1)).build()
        first.write_bytes((tmp_path / SHARD.format(1)).read_bytes())
        return {SHARD.format(1): ""}
    name = kind.removeprefix("missing ").removeprefix("empty ")
    if kind.startswith("empty"):
        (sample.folder / name).write_bytes(b"")
        return {name: "its checksum is wrong"}
    (sample.folder / name).unlink()
    return {name: "it is missing"}


KINDS = [
    "missing shard",
    "empty shard",
    "swapped shards",
    "shard of another cache",
    "missing index.parquet",
    "empty index.parquet",
    "missing source.yaml",
    "empty source.yaml",
]
KINDS_OF_STATES = [*KINDS, "missing head.safetensors", "empty head.safetensors"]


@pytest.mark.parametrize(
    ("sample", "kind"),
    [*(("top_k", kind) for kind in KINDS), *(("hidden_states", kind) for kind in KINDS_OF_STATES)],
    indirect=["sample"],
)
def test_named_in_one_line_and_repaired(sample, tmp_path, kind):
    wanted = damage_by_hand(sample, kind, tmp_path / "other")
    found = sample.damages()
    assert found.keys() == wanted.keys()
    for name, reason in wanted.items():
        assert reason in found[name] and found[name].count("\n") == 0
    refused = read_or_refuse(sample)
    assert (refused > 0) == ("source" not in kind)
    written, num_blocks = sample.repair()
    assert set(written) == set(wanted)
    assert num_blocks == ROWS_PER_SHARD * sum("shard-" in name for name in wanted) + ("head" in kind)


@in_lists
def test_reading_names_file_row_and_command(sample):
    (sample.folder / SHARD.format(1)).unlink()
    reader = CacheReader(sample.folder)
    with pytest.raises(DataError) as caught:
        reader.row(5)
    path = sample.folder / SHARD.format(1)
    assert str(caught.value) == (
        f"{path}: is damaged: it is missing; run `collegium cache repair {sample.folder}`"
    )
    path.write_bytes(sample.files[SHARD.format(2)][: len(sample.files[SHARD.format(1)])])
    with pytest.raises(DataError, match="shard-00001.parquet: is damaged: row 5 of the cache: it"):
        reader.row(5)


@in_lists
def test_shard_of_another_cache_is_refused_by_its_identity(sample, tmp_path):
    """Of the same size, so that nothing else tells."""
    other = tmp_path / "other"
    builder_of(other, plan_of(sample.mode, seed=1)).build()
    content = (other / SHARD.format(1)).read_bytes()
    assert len(content) == len(sample.files[SHARD.format(1)])
    (sample.folder / SHARD.format(1)).write_bytes(content)
    with pytest.raises(DataError, match="shard-00001.parquet: is damaged: row 4 of the cache: it says .*identity"):
        CacheReader(sample.folder).row(4)


def test_damage_under_an_open_reader_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr("collegium.cache.records.TOKENS_PER_GROUP", 1)  # a row group for each row
    builder_of(tmp_path).build()
    path = tmp_path / SHARD.format(0)
    content, wanted = path.read_bytes(), CacheReader(tmp_path).row(1)
    reader = CacheReader(tmp_path)
    refused = 0
    for place in range(4, len(content), 20):
        reader.row(0)
        with path.open("r+b") as file:  # in place: the file that the reader holds open
            file.seek(place)
            file.write(bytes([content[place] ^ 1]))
        try:
            assert equal_rows(reader.row(1), wanted)
        except DataError:
            refused += 1
        with path.open("r+b") as file:
            file.seek(place)
            file.write(content[place : place + 1])
    assert 10 < refused < len(content) // 20 // 2
    with path.open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(DataError, match="shard-00000.parquet: is damaged: row 3 of the cache"):
        reader.row(3)


@in_lists
def test_missing_manifest_is_not_a_finished_cache(sample):
    (sample.folder / MANIFEST_NAME).unlink()
    with pytest.raises(DataError, match="holds no finished cache; `collegium cache RECIPE` makes one"):
        CacheReader(sample.folder)
    with pytest.raises(DataError, match="holds no finished cache"):
        verify(Folder.at(sample.folder))
    written, num_blocks = sample.repair()
    assert MANIFEST_NAME in written and num_blocks == 0


@in_lists
def test_strangers_are_named_and_left_alone(sample):
    (sample.folder / "notes.txt").write_text("mine")
    (sample.folder / "shards" / "shard-00006.parquet").write_bytes(sample.files[SHARD.format(0)])
    verdict = verify(Folder.at(sample.folder))
    assert verdict.damages == ()
    assert verdict.strangers == ("notes.txt", "shards/shard-00006.parquet")
    assert read_or_refuse(sample) == 0
    assert repair(sample.builder())[1] == []
    assert (sample.folder / "notes.txt").read_text() == "mine"


@in_lists
def test_repair_of_another_cache_is_refused(sample):
    before = stamps_of(sample.folder)
    builder = builder_of(sample.folder, plan_of(sample.mode, max_kept=8))
    with pytest.raises(DataError, match="holds a cache with max_kept 16, now 8 is asked for"):
        repair(builder)
    assert {**stamps_of(sample.folder), ".lock": None} == {**before, ".lock": None}


@in_lists
def test_source_is_what_was_given(sample):
    assert sample.files["source.yaml"] == SOURCE
