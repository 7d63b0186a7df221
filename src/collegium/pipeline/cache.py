"""The work of `collegium cache` and its sub-commands."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from collegium.assembly.cache import build_builder, cache_place, cache_plan, cached_text
from collegium.assembly.cached_teachers import require_plain
from collegium.assembly.process import process_state
from collegium.assembly.run import Run
from collegium.assembly.weights import require_teacher_weights
from collegium.base.digests import is_text_as_written, sealed_text
from collegium.base.errors import DataError, RecipeError
from collegium.base.progress import Phase
from collegium.base.terminal import duration, say, size
from collegium.cache.builder import CacheProgress, Ranks
from collegium.cache.exchange import export_parquet
from collegium.cache.folder import Folder
from collegium.cache.manifest import SOURCE_NAME, Manifest
from collegium.cache.reader import CacheReader
from collegium.cache.records import as_begun, finished_manifest, read_recorded
from collegium.cache.verify import Verdict, repair, verify
from collegium.recipe.file import dump_recipe, parse_recipe
from collegium.recipe.recipe import Recipe, TrainingSection
from collegium.recipe.sections.models import LocalTeacherSection
from collegium.recipe.sections.objective import ObjectiveSection


def cache(recipe: Recipe, *, only: str | None = None) -> dict[str, Any]:
    """Score the prepared text with the teachers that say `cached: true`; the same call goes on or returns at once.

    Args:
        recipe: The recipe.
        only: The name of one teacher.

    Raises:
        RecipeError: no such teacher is to be cached.
    """
    sections = _cached_sections(recipe, only)
    with Phase("looking at the teachers' files"):
        require_teacher_weights(sections)  # before hours of preparing text
    run = Run(recipe)
    run.make("text")
    return {section.name: _cache_teacher(run, section) for section in sections}


def _cached_sections(recipe: Recipe, only: str | None) -> Sequence[LocalTeacherSection]:
    cached = recipe.teachers_to_cache
    if not cached:
        raise RecipeError("no teacher is to be cached: set `cached: true` for those that are")
    if only is None:
        return cached
    chosen = [section for section in cached if section.name == only]
    if not chosen:
        names = ", ".join(section.name for section in cached)
        raise RecipeError(f"--teacher {only}: the teachers with `cached: true` are {names}")
    return chosen


def _cache_teacher(run: Run, section: LocalTeacherSection) -> dict[str, Any]:
    section = section_to_cache(run, section)
    with Phase(f"scoring the text with teacher {section.name}", unit="blocks") as phase:
        manifest, location = _scored(run, section, phase)
    say(f"teacher {section.name}: {_described(manifest)} in {location}")
    return {"location": location, **summary(manifest)}


def _scored(run: Run, section: LocalTeacherSection, phase: Phase) -> tuple[Manifest, str]:
    """Build the cache of a teacher; what it holds, and where it is."""
    state = process_state()

    def show(progress: CacheProgress) -> None:
        left = "" if progress.seconds_left is None else f", {duration(progress.seconds_left)} left"
        rate = progress.tokens / progress.seconds if progress.seconds > 0 else 0.0
        phase.update(
            progress.rows,
            total=progress.num_rows,
            note=f"about {size(progress.bytes)} in all",
            rate=f"{rate:,.0f} tokens/s{left}",
        )

    location, plan = cache_place(run, section)
    builder = build_builder(
        run,
        section,
        plan,
        location=location,
        ranks=Ranks(state.process_index, state.num_processes, state.wait_for_everyone),
        source=_source(run.recipe, section),
        on_progress=show,
    )
    return builder.build(), location


def section_to_cache(run: Run, section: LocalTeacherSection) -> LocalTeacherSection:
    """The teacher as its cache holds it, with numbers for temperatures.

    Raises:
        RecipeError: lists in another vocabulary are to serve other temperatures than 1.
    """
    recipe = run.recipe
    if run.corpus_of(section) is not run.corpus:
        if recipe.cache.mode != "hidden_states":
            require_plain(section, kd_temperature=recipe.objective.kd_temperature)
        return section.at_one
    if recipe.cache.mode == "hidden_states":  # those serve every temperature, so they are fitted from the cache
        return section
    alone = run.derive(recipe=recipe.model_copy(update={"teachers": (section,)}))
    (fitted,) = alone.fitted.local_teachers
    return fitted


def summary(manifest: Manifest) -> dict[str, Any]:
    """Figures of a cache."""
    return {
        "blocks": manifest.num_rows,
        "tokens": sum(shard.tokens for shard in manifest.shards),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "bytes_per_token": manifest.bytes_per_token,
        "shards": len(manifest.shards),
        "settings": asdict(manifest.settings),
    }


def _described(manifest: Manifest) -> str:
    figures = summary(manifest)
    return (
        f"{figures['blocks']:,} blocks, {figures['tokens']:,} tokens, {size(figures['bytes'])}, "
        f"{figures['bytes_per_token']:.0f} bytes a token"
    )


def _source(recipe: Recipe, section: LocalTeacherSection) -> bytes:
    """A recipe of all that decides the content of one teacher's cache, and nothing else."""
    settings = recipe.cache.model_dump(exclude={"directory", "batch_size", "tail"})
    own = recipe.model_copy(
        update={
            "output_dir": None,
            "teachers": (section,),
            "cache": type(recipe.cache)(**settings),
            "objective": ObjectiveSection(kd_temperature=recipe.objective.kd_temperature),
            "training": TrainingSection(max_steps=1),
            "evaluation": type(recipe.evaluation)(),
        }
    )
    return sealed_text(dump_recipe(own)).encode()


def verify_cache(location: str) -> Verdict:
    """Read every byte of a cache.

    Raises:
        DataError: the manifest is missing or damaged.
    """
    return verify(Folder.at(location))


def repair_cache(location: str) -> list[str]:
    """Write what is damaged again; the files that were.

    Raises:
        DataError: it is not known what the cache is made from, or the text or the teacher are others now.
    """
    run = Run(_recipe_of(location))
    (section,) = run.recipe.local_teachers  # `_source` wrote the recipe of one
    plan = as_begun(cache_plan(run, section), Folder.at(location))
    builder = build_builder(run, section, plan, location=location, source=_source(run.recipe, section))
    with Phase("repairing the cache"):
        _, written = repair(builder)
    say(f"{location}: wrote {', '.join(written)}" if written else f"{location}: nothing is damaged")
    return list(written)


def export_cache(location: str, path: Path) -> int:
    """Write the training blocks of a cache as plain Parquet; how many there were.

    Raises:
        DataError: the cache is damaged, holds no lists, or its text is not there any more.
    """
    run = Run(_recipe_of(location))
    section = run.recipe.teachers[0]
    blocks = cached_text(section, run.corpus_of(section))["train"]
    with Phase(f"writing {path.name}", total=len(blocks), unit="blocks") as phase:
        rows = phase.counted(blocks[i] for i in range(len(blocks)))
        num_blocks = export_parquet(CacheReader(location), rows, path)
    say(f"{path}: {num_blocks:,} blocks, {size(path.stat().st_size)}")
    return num_blocks


def _recipe_of(location: str) -> Recipe:
    folder = Folder.at(location)
    manifest = finished_manifest(folder)
    try:
        content = folder.read(SOURCE_NAME) if manifest is None else read_recorded(folder, manifest, SOURCE_NAME)
        if not is_text_as_written(content):
            raise DataError("its digest differs")
    except (OSError, DataError):
        raise DataError(
            f"{folder.path(SOURCE_NAME)}: is missing or damaged, and says what the cache is made from: run "
            "`collegium cache RECIPE` again, which writes it, then this command"
        ) from None
    return parse_recipe(content.decode(errors="replace"), Path(folder.path(SOURCE_NAME)))
