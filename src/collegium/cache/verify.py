"""Finds damage in a cache and repairs it: only what is damaged is written again."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from collegium.base.locks import LOCK_NAME
from collegium.base.progress import Phase
from collegium.cache.builder import CacheBuilder
from collegium.cache.folder import Folder
from collegium.cache.manifest import INDEX_NAME, MANIFEST_NAME, Manifest, Shard, read_manifest
from collegium.cache.reader import open_shard
from collegium.cache.records import (
    Record,
    clean,
    file_damage,
    finished_manifest,
    num_shards,
    read_index,
    read_record,
    require_same_plan,
    shard_name,
    shard_rows,
)
from collegium.cache.shard import ShardFile


@dataclass(frozen=True)
class Damage:
    """One file that is not as it was written.

    Attributes:
        name: The file.
        rows: Rows of the cache that cannot be read; empty if the file holds none, or none is hit.
        reason: What is wrong.
    """

    name: str
    rows: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class Verdict:
    """Findings after reading every byte.

    Attributes:
        damages: Files that must be repaired.
        strangers: Files that do not belong to the cache; they do no harm.
    """

    damages: tuple[Damage, ...]
    strangers: tuple[str, ...]


def verify(folder: Folder) -> Verdict:
    """Read every file of a finished cache and compare it with the manifest.

    Raises:
        DataError: the manifest is missing or damaged itself.
    """
    manifest = read_manifest(folder)
    wanted = {MANIFEST_NAME, LOCK_NAME, *manifest.files, *(shard.name for shard in manifest.shards)}
    strangers = tuple(name for name in folder.names() if name not in wanted)
    return Verdict(tuple(_damages(folder, manifest)), strangers)


def _damages(folder: Folder, manifest: Manifest) -> Iterator[Damage]:
    for name, digest in manifest.files.items():
        reason = file_damage(folder, name, digest)
        if reason is not None:
            yield Damage(name, (), reason)
    with Phase("reading the cache", total=len(manifest.shards), unit="shards") as phase:
        for number, shard in enumerate(phase.counted(manifest.shards)):
            reason = shard_damage(folder, shard)
            if reason is not None:
                yield Damage(shard.name, tuple(_bad_rows(folder, manifest, number)), reason)


def shard_damage(folder: Folder, shard: Shard) -> str | None:
    """Damage to a shard's file, in words; None if it is whole."""
    size = folder.size(shard.name)
    if size not in (None, shard.bytes):
        return f"it has {size} bytes, not {shard.bytes}"
    return file_damage(folder, shard.name, shard.sha256)


def _bad_rows(folder: Folder, manifest: Manifest, number: int) -> Iterator[int]:
    shard = manifest.shards[number]
    try:
        file = open_shard(folder, manifest, number)
    except (OSError, ValueError):
        yield from range(shard.first_row, shard.first_row + shard.rows)
        return
    for index in range(shard.rows):
        try:
            file.row(index)
        except (OSError, ValueError):
            yield shard.first_row + index
    file.close()


def repair(builder: CacheBuilder) -> tuple[Manifest, Sequence[str]]:
    """Write what is damaged again, from whole shards where they suffice, otherwise with the teacher.

    Returns:
        The manifest, and the names of the files that were written.

    Raises:
        DataError: the folder holds another cache.
    """
    folder = builder.folder
    plan = builder.plan
    with builder.locked():
        found = finished_manifest(folder)
        if found is None:
            builder.require_same()
        else:
            require_same_plan(found, plan, folder)
        with Phase("reading the cache", total=num_shards(plan), unit="shards") as phase:
            numbers = phase.counted(range(num_shards(plan)))
            bad = [number for number in numbers if not _is_whole(folder, found, plan, number)]
        builder.rebuild(bad)
        written = [shard_name(number) for number in bad]
        known = _known_keys(folder, found)
        records = [
            _record(folder, found, plan, number, None if number in bad else known)
            for number in range(num_shards(plan))
        ]
        files = dict(found.files) if found is not None else {}
        keys = [key for record in records for key in record.keys]
        for name in builder.file_names:
            if file_damage(folder, name, files.get(name)) is not None:
                files[name] = builder.write_file(name, keys)
                written.append(name)
        manifest = replace(plan, shards=tuple(record.shard for record in records), files=files)
        if manifest != found:
            folder.write(MANIFEST_NAME, manifest.to_bytes())
            written.append(MANIFEST_NAME)
        clean(folder, manifest)
    return manifest, written


def _is_whole(folder: Folder, found: Manifest | None, plan: Manifest, number: int) -> bool:
    if found is not None:
        return shard_damage(folder, found.shards[number]) is None
    try:
        file = _open(folder, plan, number)
        file.rows()
        file.close()
    except (OSError, ValueError):
        return False
    return True


def _known_keys(folder: Folder, found: Manifest | None) -> NDArray[np.uint64] | None:
    """Keys of all rows, if the index is whole."""
    if found is None or file_damage(folder, INDEX_NAME, found.files.get(INDEX_NAME)) is not None:
        return None
    return read_index(folder, found)


def _record(
    folder: Folder, found: Manifest | None, plan: Manifest, number: int, known: NDArray[np.uint64] | None
) -> Record:
    """Record of a whole shard; its keys are read from the file where they are not known."""
    span = shard_rows(plan, number)
    name = shard_name(number)
    if found is not None and known is not None:
        keys = tuple(int(key) for key in known[span.start : span.stop])
        return Record(plan.identity, found.shards[number], keys)
    file = _open(folder, plan, number)
    keys = tuple(row.key for row in file.rows())
    rebuilt = read_record(folder, plan, number)
    if rebuilt is not None:
        shard = rebuilt.shard
    elif found is not None:
        shard = found.shards[number]
    else:
        size = folder.size(name) or 0
        shard = Shard(name, span.start, len(span), file.tokens, size, folder.digest(name))
    file.close()
    return Record(plan.identity, shard, keys)


def _open(folder: Folder, plan: Manifest, number: int) -> ShardFile:
    name = shard_name(number)
    if folder.size(name) is None:
        raise FileNotFoundError(folder.path(name))
    file = ShardFile(folder.open(name), identity=plan.identity, first_row=shard_rows(plan, number).start)
    if len(file) != len(shard_rows(plan, number)):
        raise ValueError(f"it has {len(file)} rows, not {len(shard_rows(plan, number))}")
    return file
