"""Caches that are yet to be built: how fast a teacher scores text, and how many bytes a block takes.

A cache of some training blocks is built in a folder that is thrown away, and the trial's steps read from it as
those of the run will read from the whole one.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from collegium.assembly.cache import cache_place, cached_text, teacher_to_cache
from collegium.assembly.cached_teachers import cached_teacher
from collegium.assembly.corpus import Corpus
from collegium.assembly.run import Run
from collegium.assembly.teachers import within_domains
from collegium.base.progress import Phase
from collegium.cache.builder import CacheBuilder, CacheProgress
from collegium.cache.folder import Folder
from collegium.cache.manifest import Manifest
from collegium.cache.records import finished_manifest, num_shards
from collegium.data.blocks import PackedBlocks
from collegium.evaluation.cost import folder_bytes
from collegium.pipeline.cache import section_to_cache
from collegium.recipe.sections.models import LocalTeacherSection
from collegium.signals.contracts import Teacher


SAMPLE_TOKENS = 2**14
"""Tokens that each teacher scores to be timed, but two batches at least."""


@dataclass(frozen=True)
class PendingCache:
    """A cache that the recipe asks for and that is not there.

    Attributes:
        section: The teacher, as its cache will hold it.
        corpus: The text, in the teacher's own tokens.
        plan: What it will hold.
        is_own_text: Whether the teacher's tokens are not the student's.
    """

    section: LocalTeacherSection
    corpus: Corpus
    plan: Manifest
    is_own_text: bool


@dataclass(frozen=True)
class CacheCost:
    """Cost of building one.

    Attributes:
        seconds: Loading the teacher, scoring and writing.
        bytes: On disk.
    """

    seconds: float
    bytes: int


def pending_caches(run: Run) -> list[PendingCache]:
    """The caches that `collegium cache` has yet to build."""
    pending = []
    for section in run.recipe.teachers_to_cache:
        kept = section_to_cache(run, section)
        place = cache_place(run, kept)
        if finished_manifest(Folder.at(place.location)) is None:
            corpus = run.corpus_of(section)
            pending.append(PendingCache(kept, corpus, place.plan, corpus is not run.corpus))
    return pending


def built_cache_bytes(run: Run, pending: Sequence[PendingCache]) -> dict[str, int]:
    """Size of the recipe's own caches that are there and on disk."""
    missing = {cache.section.name for cache in pending}
    sizes = {}
    for section in run.recipe.teachers_to_cache:
        if section.name not in missing:
            kept = section_to_cache(run, section)
            local = Folder.at(cache_place(run, kept).location).local
            if local is not None:
                sizes[section.name] = folder_bytes(local)
    return sizes


def sample_of(run: Run, cache: PendingCache, blocks: PackedBlocks | None) -> PackedBlocks:
    """The blocks that are scored: those of `blocks` that the teacher is for, or some of its own text."""
    own = cache.section.domains
    if blocks is not None and not cache.is_own_text:
        rows = [i for i in range(len(blocks)) if own is None or blocks[i]["domain"] in own]
        if rows:
            return PackedBlocks(blocks.dataset.select(rows), [blocks[i]["sample_id"] for i in rows])
    return cached_text(cache.section, cache.corpus)["train"].take(sample_size(run))


def sample_size(run: Run) -> int:
    """Blocks of a sample."""
    return max(2 * run.recipe.cache.batch_size, SAMPLE_TOKENS // run.recipe.data.block_size)


def build_sample(run: Run, cache: PendingCache, blocks: PackedBlocks, folder: Path) -> CacheCost:
    """Build a cache of some blocks, and say what the whole one takes."""
    reports: list[tuple[float, CacheProgress]] = []
    start = time.perf_counter()
    loaded: list[float] = []

    def load() -> Teacher:
        teacher = teacher_to_cache(run, cache.section, cache.plan)
        loaded.append(time.perf_counter() - start)
        return teacher

    builder = CacheBuilder(
        Folder.at(folder),
        load,
        [blocks[i] for i in range(len(blocks))],
        cache.corpus.collator,
        replace(cache.plan, splits={"train": len(blocks)}),
        batch_size=run.recipe.cache.batch_size,
        device=run.device,
        on_progress=lambda progress: reports.append((time.perf_counter(), progress)),
    )
    with Phase(f"scoring some text with teacher {cache.section.name}"):
        builder.build()
    end = time.perf_counter()
    (first, before), (last, after) = reports[0], reports[-1]
    per_row = (last - first) / max(1, after.rows - before.rows) if after.rows > before.rows else first - start
    num_rows = cache.plan.num_rows
    seconds = loaded[0] + per_row * num_rows + (end - last) * num_shards(cache.plan)
    shards = sum(path.stat().st_size for path in (folder / "shards").iterdir())
    others = folder_bytes(folder) - shards  # head, index and manifest
    return CacheCost(seconds, round(shards / len(blocks) * num_rows) + others)


def open_sample(run: Run, cache: PendingCache, folder: Path) -> Teacher:
    """Open the teacher as the run will read it, from the sample."""
    section = next(s for s in run.recipe.teachers if s.name == cache.section.name)  # with fitted temperatures
    return within_domains(run, section, cached_teacher(run, section, folder))
