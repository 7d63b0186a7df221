"""The files that a cache is built of: shards with their records, index, and what is cleared away.

    CACHE/
    ├── manifest.json             everything that describes the cache, written last (`manifest`)
    ├── index.parquet             keys of all rows, in the order of the shards
    ├── head.safetensors          the teacher's head, with `hidden_states` only (`builder`)
    ├── source.yaml               the teacher's section of the recipe, so that rows can be repaired (`builder`)
    └── shards/
        └── shard-00000.parquet   rows (`shard`)

While it is built there are also `begun.json`, which says for which teacher and text, and a record beside each
shard, `shard-00000.json`, which says what the manifest will say of it.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from collegium.base.differences import Difference, differences
from collegium.base.digests import sealed, unsealed
from collegium.base.errors import DataError
from collegium.base.locks import LOCK_NAME
from collegium.cache.folder import Folder
from collegium.cache.manifest import BAD_MANIFEST, INDEX_NAME, MANIFEST_NAME, Manifest, Shard
from collegium.cache.shard import TOKENS_PER_GROUP, StoredRow, encode_rows, identity_of


BEGUN_NAME = "begun.json"


@dataclass(frozen=True)
class Record:
    """Facts about a shard before there is a manifest.

    Attributes:
        identity: Identity of the cache.
        shard: What the manifest will say.
        keys: Keys of its rows.
    """

    identity: str
    shard: Shard
    keys: tuple[int, ...]

    def to_bytes(self) -> bytes:
        """The file."""
        return (json.dumps(sealed(asdict(self))) + "\n").encode()


def num_shards(plan: Manifest) -> int:
    """Shards of a cache."""
    return -(-plan.num_rows // plan.settings.rows_per_shard)


def shard_rows(plan: Manifest, shard: int) -> range:
    """Rows of one shard."""
    size = plan.settings.rows_per_shard
    return range(shard * size, min((shard + 1) * size, plan.num_rows))


def shard_name(shard: int) -> str:
    """File of a shard."""
    return f"shards/shard-{shard:05d}.parquet"


def record_name(shard: int) -> str:
    """File of its record."""
    return f"shards/shard-{shard:05d}.json"


def write_shard(folder: Folder, plan: Manifest, shard: int, rows: Sequence[StoredRow], *, tokens: int) -> Record:
    """Write the file of a shard; what is to be recorded of it."""
    span = shard_rows(plan, shard)
    size = max(1, TOKENS_PER_GROUP * len(rows) // max(1, tokens))
    content = encode_rows(rows, rows_per_group=size, identity=plan.identity, first_row=span.start, tokens=tokens)
    digest = write_recorded(folder, shard_name(shard), memoryview(content))
    record = Shard(shard_name(shard), span.start, len(rows), tokens, len(content), digest)
    return Record(plan.identity, record, tuple(row.key for row in rows))


def read_record(folder: Folder, plan: Manifest, shard: int) -> Record | None:
    """The record of a shard that is there; None if it is not, or is another cache's."""
    tree = read_json(folder, record_name(shard))
    try:
        record = Record(tree["identity"], Shard(**tree["shard"]), tuple(tree["keys"]))
    except (TypeError, KeyError):
        return None
    same = record.identity == plan.identity and folder.size(record.shard.name) == record.shard.bytes
    return record if same else None


def finished_manifest(folder: Folder) -> Manifest | None:
    """The manifest, if there is a whole one."""
    try:
        return Manifest.from_bytes(folder.read(MANIFEST_NAME))
    except (FileNotFoundError, *BAD_MANIFEST):
        return None


def require_same_plan(found: Manifest, wanted: Manifest, folder: Folder) -> None:
    """Refuse to continue a cache of something else.

    Raises:
        DataError: naming the first difference, with both values.
    """
    if sentence := plan_difference(found, wanted):
        raise DataError(
            f"{folder.location}: holds a cache with {sentence} is asked for: give another cache.directory, or "
            "delete it"
        )


def plan_difference(found: Manifest, wanted: Manifest) -> str | None:
    """Say with both values in what a cache is another one than is wanted; None if in nothing that is known."""
    differing = list(plan_differences(found, wanted))
    if not differing:
        return None
    more = f" ({len(differing) - 1} more differ)" if len(differing) > 1 else ""
    first = differing[0]
    return f"{' '.join(first.path)} {first.before}, now {first.after}{more}"


def plan_differences(found: Manifest, wanted: Manifest) -> Iterator[Difference]:
    """Everything in which two caches differ."""
    fields = manifest_fields(wanted)
    for name, value in manifest_fields(found).items():
        if value != fields[name]:
            yield Difference((name,), value, fields[name])
    ours = found.teacher.settings
    theirs = wanted.teacher.settings
    if ours is not None and theirs is not None:
        for one in differences(ours, theirs):
            yield one._replace(path=(f"{one.path[0]}:", ".".join(one.path[1:])))


def as_begun(plan: Manifest, folder: Folder) -> Manifest:
    """The plan of a cache; where an earlier version began or made it, as that one had it.

    Else the parts that are there would be of another cache, and hours of work be lost.
    """
    there = finished_manifest(folder) or _begun(folder)
    if there is not None:
        return plan.earlier if there.is_earlier else plan
    return plan.earlier if plan.earlier.identity in _shard_identities(folder) else plan


def _shard_identities(folder: Folder) -> Iterator[str | None]:
    """Identities of the caches that the shards there say they belong to; None of one that cannot be read."""
    for name in folder.names():
        if name.startswith("shards/") and name.endswith(".parquet"):
            with folder.open(name) as file:
                yield identity_of(file)


def _begun(folder: Folder) -> Manifest | None:
    try:
        return Manifest.from_bytes(folder.read(BEGUN_NAME))
    except (FileNotFoundError, *BAD_MANIFEST):
        return None


def manifest_fields(manifest: Manifest) -> dict[str, Any]:
    """All that decides the content of a cache, by name, but the teacher's settings."""
    tree = asdict(manifest)
    settings: dict[str, Any] = tree["settings"]
    return {"teacher": tree["teacher"]["fingerprint"], "text": tree["text"], "splits": tree["splits"], **settings}


def require_own_shards(folder: Folder, plan: Manifest) -> None:
    """Refuse a folder with shards of another cache, where nothing else says what it holds.

    Raises:
        DataError: naming the first of them.
    """
    for shard in range(num_shards(plan)):
        name = shard_name(shard)
        if folder.size(name) is None:
            continue
        with folder.open(name) as file:
            identity = identity_of(file)
        if identity not in (None, plan.identity):
            raise DataError(
                f"{folder.path(name)}: belongs to another cache (identity {identity}, now {plan.identity}): its "
                "teacher, text or settings differ; give another cache.directory, or delete the folder"
            )


def write_index(folder: Folder, keys: Sequence[int]) -> str:
    """Write the keys of all rows in order; the file's SHA-256."""
    sink = pa.BufferOutputStream()
    table = pa.table({"key": pa.array(keys, pa.uint64())})
    pq.write_table(table, sink, compression="zstd", use_dictionary=False, write_page_checksum=True)
    return write_recorded(folder, INDEX_NAME, memoryview(sink.getvalue()))


def read_index(folder: Folder, manifest: Manifest) -> NDArray[np.uint64]:
    """The keys of all rows.

    Raises:
        DataError: the file is damaged or missing.
    """
    content = read_recorded(folder, manifest, INDEX_NAME)
    keys: NDArray[np.uint64] = pq.read_table(pa.BufferReader(content))["key"].to_numpy()
    return keys


def write_recorded(folder: Folder, name: str, content: bytes | memoryview) -> str:
    """Write a file; its SHA-256."""
    folder.write(name, content)
    return hashlib.sha256(content).hexdigest()


def read_recorded(folder: Folder, manifest: Manifest, name: str) -> bytes:
    """A file as the manifest knows it.

    Raises:
        DataError: it is damaged or missing.
    """
    try:
        content = folder.read(name)
    except FileNotFoundError:
        raise damaged(folder, name, "it is missing") from None
    except OSError as error:
        raise damaged(folder, name, f"it cannot be read ({error.strerror or error})") from error
    if hashlib.sha256(content).hexdigest() != manifest.files.get(name):
        raise damaged(folder, name, "its checksum is wrong")
    return content


def file_damage(folder: Folder, name: str, sha256: str | None) -> str | None:
    """Damage to a file that should have this checksum, in words; None if it is whole."""
    try:
        if folder.size(name) is None:
            return "it is missing"
        return None if folder.digest(name) == sha256 else "its checksum is wrong"
    except OSError as error:  # a bad sector, a folder in its place
        return f"it cannot be read ({error.strerror or error})"


def damaged(folder: Folder, name: str, reason: str) -> DataError:
    """Error for a damaged file."""
    return DataError(f"{folder.path(name)}: is damaged: {reason}; run `collegium cache repair {folder.location}`")


def clean(folder: Folder, manifest: Manifest) -> None:
    """Remove what only building needs, and what a killed process left."""
    wanted = {LOCK_NAME, *(shard.name for shard in manifest.shards)}
    for name in folder.names():
        if name not in wanted and is_passing(name):
            folder.remove(name)


def is_passing(name: str) -> bool:
    """True for the name of a file that is there only while a cache is built."""
    folder, _, base = name.rpartition("/")
    is_temporary = base.startswith(".") and base.endswith(".tmp")
    is_record = folder == "shards" and base.startswith("shard-") and base.endswith(".json")
    return name in (BEGUN_NAME, LOCK_NAME) or is_temporary or is_record


def read_json(folder: Folder, name: str) -> Any:
    """JSON; None if the file is not there or is not as it was written."""
    try:
        return unsealed(json.loads(folder.read(name)))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
