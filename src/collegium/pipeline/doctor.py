"""Findings of `collegium doctor`: the machine, the text, the caches, and the teachers' tokenizers.

Tokenizers, configurations and headers of weights are read, no weights; nothing is prepared, scored or downloaded
that is not needed for that.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from collegium.alignment.tokenizer_match import tokenizer_difference
from collegium.alignment.verdict import Comparison
from collegium.assembly.cached_teachers import is_built, open_cache
from collegium.assembly.corpus import prepared_text
from collegium.assembly.run import Run
from collegium.assembly.tokenizer_comparison import Sample, compare_teachers, sample_text
from collegium.assembly.tokenizers import teacher_tokenizer
from collegium.assembly.weights import require_student_weights, require_teacher_weights
from collegium.base.errors import DataError, RecipeError, TeacherError, UserError
from collegium.base.progress import Phase
from collegium.base.references import cache_dir, is_local, is_offline
from collegium.data.prepared import PreparedText
from collegium.pipeline.model_kinds import unfit_models
from collegium.recipe.recipe import Recipe
from collegium.recipe.sections.models import CachedTeacherSection, LocalTeacherSection


STUDENT = "weights of the student"
TEACHERS = "weights of the teachers"

LOW_DISK = 2e9
"""Bytes free in the cache folder below which something is said."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: What.
        found: What was found.
        fix: What to do about it; None if it is as it should be.
        stops: Whether no command gets past it.
    """

    name: str
    found: str
    fix: str | None = None
    stops: bool = False


@dataclass(frozen=True)
class Diagnosis:
    """All that the doctor found.

    Attributes:
        checks: The machine, the text, the caches.
        tokenizers: Each teacher's beside the student's.
    """

    checks: tuple[Check, ...]
    tokenizers: tuple[Comparison, ...]

    @property
    def failure(self) -> UserError | None:
        """The obstacle to every run of the recipe, as the error that it would end in; None if nothing does."""
        for check in self.checks:
            if check.stops:
                kind = TeacherError if check.name == TEACHERS else DataError
                return kind(f"{check.name}: {check.fix}")
        for pair in self.tokenizers:
            if pair.kind == "unusable":
                return TeacherError(f"teacher {pair.teacher!r}: {pair.verdict}")
        return None


def diagnose(recipe: Recipe) -> Diagnosis:
    """Look at everything that a run of the recipe relies on.

    Raises:
        DataError: the student's tokenizer or configuration cannot be read.
    """
    run = Run(recipe)
    with Phase("reading the text"):
        text, sample, text_check = _look_at_text(run)
    with Phase("looking at models and caches"):
        checks = [_torch(), _hub(recipe), _disk(), *_weights(recipe), *_unfit(recipe), text_check]
        checks += _caches(run, text)
    pairs = compare_teachers(run, sample)
    return Diagnosis(tuple(checks), pairs)


def _torch() -> Check:
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    devices = ", ".join(names) if names else "no GPU"
    threads = torch.get_num_threads()
    return Check("torch", f"{torch.__version__}, {threads} thread{'s' * (threads > 1)}, {devices}")


def _hub(recipe: Recipe) -> Check:
    local = recipe.local_teachers
    references = [recipe.student.model, *(section.model for section in local)]
    references += [name for name in (recipe.student.tokenizer, *(s.adapter for s in local)) if name]
    references += [source.dataset for source in recipe.data.sources if source.kind == "hub"]
    wanted = sorted({reference for reference in references if not is_local(reference)})
    if not wanted:
        return Check("hub", "not needed: every model and text is on this machine")
    if is_offline():
        return Check("hub", f"HF_HUB_OFFLINE is set: {', '.join(wanted)} must have been fetched before")
    return Check("hub", f"HF_HUB_OFFLINE is not set: {', '.join(wanted)} are fetched if they are not here")


def _disk() -> Check:
    folder = cache_dir()
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    found = f"{folder}, {free / 1e9:.1f} GB free"
    if not os.access(there, os.W_OK):
        return Check("cache folder", f"{found}, not writable", "set COLLEGIUM_CACHE to a folder that is")
    if free < LOW_DISK:
        return Check("cache folder", found, "free some space, or set COLLEGIUM_CACHE to a folder on another disk")
    return Check("cache folder", found)


def _weights(recipe: Recipe) -> Iterator[Check]:
    """Compare the files of models with their configurations, by headers."""
    looks: list[tuple[str, Callable[[], None]]] = [(STUDENT, lambda: require_student_weights(recipe))]
    if any("model" in section.references for section in recipe.teachers):
        looks.append((TEACHERS, lambda: require_teacher_weights(recipe.teachers)))
    for name, look in looks:
        try:
            look()
        except (DataError, TeacherError) as error:
            yield Check(name, "cannot be loaded", str(error), stops=True)
        else:
            yield Check(name, "every tensor is in its files, and nothing else, as far as they are here")


def _unfit(recipe: Recipe) -> Iterator[Check]:
    for unfit in unfit_models(recipe):
        yield Check(f"model of {unfit.key}", unfit.found, unfit.fix, stops=unfit.exit_code != 0)


def _look_at_text(run: Run) -> tuple[PreparedText | None, Sample, Check]:
    """The text if it is prepared, some of it in any case, and what is said of it."""
    try:
        text = prepared_text(run.recipe, run.tokenizer)
        sample = sample_text(run, text)
    except DataError as error:
        return None, {}, Check("text", "cannot be used", str(error), stops=True)
    if text is None:
        fix = "run `collegium prepare RECIPE`; the other commands do so first"
        return None, sample, Check("text", "not prepared", fix)
    held_out = sum(len(blocks) for blocks in text.held_out.values())
    found = f"{len(text.train):,} training blocks, {held_out:,} held out, in {text.directory}"
    return text, sample, Check("text", found)


def _caches(run: Run, text: PreparedText | None) -> Iterator[Check]:
    found = None if text is None else run.derive(text=text)  # so that none is prepared
    for section in run.recipe.teachers:
        if section.is_cached:
            yield _cache(found, section)


def _cache(run: Run | None, section: LocalTeacherSection | CachedTeacherSection) -> Check:
    name = f"cache of {section.name}"
    if run is None:
        return Check(name, "not looked for without its text", "prepare the text, then ask again")
    if section.fitted:
        return Check(name, "not looked for: which it is follows from temperatures that say `fit`")
    try:
        if not _has_own_text(run, section):
            return Check(
                name, "not there: its text in the teacher's tokens is not", "run `collegium cache RECIPE`"
            )
        manifest = open_cache(run, section).manifest
    except (RecipeError, TeacherError) as error:
        return Check(name, "cannot be read", str(error))
    except DataError as error:
        return Check(name, "cannot be read", str(error), stops=is_built(run, section))
    size = sum(shard.bytes for shard in manifest.shards)
    return Check(name, f"{manifest.num_rows:,} blocks, {size / 1e6:,.1f} MB")


def _has_own_text(run: Run, section: LocalTeacherSection | CachedTeacherSection) -> bool:
    """See whether the text is there in a cached teacher's own tokens; opening its cache would prepare it."""
    own = teacher_tokenizer(section)
    if own is None or tokenizer_difference(run.tokenizer, own) is None:
        return True
    return prepared_text(run.recipe, own, is_students=False) is not None
