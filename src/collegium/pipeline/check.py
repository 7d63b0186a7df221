"""Findings of `collegium check`: all that a recipe and a look at this machine's files show, without torch.

It is for the moment after an edit, before a job is queued: a second, no network, no tokenizer read. What a
tokenizer or a cache would have to be opened for is left to `doctor`, what weights are needed for to `preflight`.
"""

import contextlib
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from collegium.base.errors import DataError, RecipeError, TeacherError, UserError
from collegium.base.references import find_files, is_local, resolve_reference
from collegium.base.terminal import show
from collegium.base.typed import typed
from collegium.models.adapter_config import other_base, read_adapter_config
from collegium.models.weight_files import shapes_in, weight_files
from collegium.pipeline.first_look import first_rows, on_hub
from collegium.pipeline.lengths import complaints, most_blocks
from collegium.pipeline.model_kinds import unfit_models
from collegium.pipeline.run_folder import require_free
from collegium.pipeline.stale_caches import stale_cache
from collegium.recipe.methods import METHODS
from collegium.recipe.recipe import Recipe
from collegium.recipe.sections.models import ContinuedStudentSection
from collegium.recipe.sections.sources import FileSourceSection


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        key: The recipe's key.
        found: What was found.
        fix: What to do about it; None if it is as it should be.
        exit_code: In what a run would end; 0 if it is as it should be.
        is_sure: False if what was looked at does not decide it.
    """

    key: str
    found: str
    fix: str | None = None
    exit_code: int = 0
    is_sure: bool = True


def check(recipe: Recipe) -> tuple[Finding, ...]:
    """Look at everything that needs no model, in the order of the recipe."""
    return (
        Finding("recipe", _described(recipe)),
        _run_folder(recipe),
        *_method(recipe),
        *_student(recipe),
        *_teachers(recipe),
        *_caches(recipe),
        *(Finding(*unfit) for unfit in unfit_models(recipe)),
        *_sources(recipe),
        *_capabilities(recipe),
        *_lengths(recipe),
        *_packages(recipe),
    )


def conclude_check(findings: tuple[Finding, ...], *, as_json: bool) -> dict[str, Any]:
    """Print a line for each finding unless the document is wanted; ends as the first run of the recipe would.

    Raises:
        UserError: of the class in which a run would end.
    """
    document = {"ok": not any(f.exit_code for f in findings), "findings": [asdict(f) for f in findings]}
    if not as_json:
        show("\n".join(_line(finding) for finding in findings))
    wrong = [finding for finding in findings if finding.exit_code]
    if not wrong:
        return document
    more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
    failure = _ERRORS[wrong[0].exit_code](f"{wrong[0].key}: {wrong[0].found}; {wrong[0].fix}{more}")
    failure.report = document
    raise failure


_ERRORS: Mapping[int, type[UserError]] = {
    error.exit_code: error for error in (RecipeError, DataError, TeacherError)
}


def _line(finding: Finding) -> str:
    if finding.fix is None:
        return f"{'ok   ' if finding.is_sure else 'unsure'} {finding.key}: {finding.found}"
    return f"fix   {finding.key}: {finding.found}; {finding.fix}"


def _run_folder(recipe: Recipe) -> Finding:
    try:
        there = require_free(recipe, recipe.run_dir)
    except DataError as error:  # the recipe that is there is damaged
        found, fix = str(error).split(": ", 1)[1].split(": ", 1)
        return Finding("output_dir", f"{recipe.run_dir / 'recipe.yaml'} {found}", fix, error.exit_code)
    except RecipeError as error:
        found, fix = str(error).splitlines()[0].removeprefix(f"{recipe.run_dir}: ").rsplit("; ", 1)
        return Finding("output_dir", f"{recipe.run_dir} {found}", fix, error.exit_code)
    return Finding(
        "output_dir",
        f"{recipe.run_dir} is {'new' if there is None else 'of this recipe, or nothing was trained there'}",
    )


def _described(recipe: Recipe) -> str:
    counts = (("teacher", len(recipe.teachers)), ("source", len(recipe.data.sources)))
    numbers = ", ".join(f"{count} {noun}{'s' * (count != 1)}" for noun, count in counts)
    return f"valid; {numbers}"


def _method(recipe: Recipe) -> Iterator[Finding]:
    if recipe.method is not None:
        filled = ", ".join(_leaves(METHODS[recipe.method]))
        yield Finding("method", f"{recipe.method} fills in what the recipe leaves out of {filled or 'nothing'}")


def _leaves(content: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in content.items():
        if isinstance(value, Mapping) and "kind" not in value and "shape" not in value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _student(recipe: Recipe) -> Iterator[Finding]:
    student = recipe.student
    if isinstance(student, ContinuedStudentSection):
        finished = Path(student.run, "recipe.yaml").is_file() and Path(student.model).is_dir()
        fix = None if finished else "train that run first, or give another folder"
        found = f"{student.run} holds {'a' if finished else 'no'} finished run"
        yield Finding("student.run", found, fix, 0 if finished else DataError.exit_code)
        return
    for name in ("model", "tokenizer"):
        if reference := getattr(student, name):
            is_read = name == "model" and student.kind != "config"
            yield _model(f"student.{name}", reference, DataError.exit_code, holds_weights=is_read)


def _teachers(recipe: Recipe) -> Iterator[Finding]:
    for i, teacher in enumerate(recipe.teachers):
        for name, reference in teacher.references.items():
            yield _model(f"teachers.{i}.{name}", reference, TeacherError.exit_code, holds_weights=name == "model")
        if adapter := teacher.references.get("adapter"):
            yield from _base_of(f"teachers.{i}.adapter", adapter, teacher.references["model"])
        path = teacher.cache_path
        if path is not None and "://" not in path:
            there = Path(path, "manifest.json").is_file()
            fix = None if there else "make it there with `collegium cache`, or give another folder"
            found = f"{path} holds {'a' if there else 'no'} cache"
            yield Finding(f"teachers.{i}.path", found, fix, 0 if there else TeacherError.exit_code)


def _caches(recipe: Recipe) -> Iterator[Finding]:
    names = [teacher.name for teacher in recipe.teachers]
    for teacher in recipe.teachers_to_cache:
        if stale := stale_cache(teacher, recipe.cache.directory):
            key = f"teachers.{names.index(teacher.name)}.cached"
            yield Finding(key, stale.found, stale.fix, DataError.exit_code if stale.stops else 0)


def _model(key: str, reference: str, exit_code: int, *, holds_weights: bool = False) -> Finding:
    """A path is looked at, headers of weights too; of a hub id it is only known whether it is in the cache."""
    if not is_local(reference) and not reference.endswith(".gguf"):
        look = on_hub(reference, is_dataset=key.endswith(".dataset"))
        return Finding(key, look.found, look.fix, exit_code if look.fix else 0, look.is_sure)
    try:
        path = Path(resolve_reference(reference))
    except DataError as error:
        return Finding(key, *_halves(error), exit_code)
    if not path.exists():
        return Finding(key, f"{reference} is not there", "give the path of a model, or a hub id", exit_code)
    try:
        if path.is_dir() and holds_weights:
            shapes_in(weight_files(path, reference), reference)
        if path.is_dir() and key.endswith(".adapter"):
            read_adapter_config(str(path))
    except DataError as error:
        return Finding(key, *_halves(error), exit_code)
    return Finding(key, f"{reference} is there")


def _base_of(key: str, adapter: str, base: str) -> Iterator[Finding]:
    """Say so if an adapter on this machine was made for another model; a run only warns of it."""
    with contextlib.suppress(DataError):  # which is said already
        path = resolve_reference(adapter)
        if Path(path).is_dir() and (sentence := other_base(read_adapter_config(path), base)):
            found, _, fix = sentence.partition("; ")
            yield Finding(key, found, fix)


def _halves(error: UserError) -> tuple[str, str]:
    """The fault, and the fix."""
    found, semicolon, fix = str(error).partition("; ")
    return found, fix if semicolon else "give another one"


def _sources(recipe: Recipe) -> Iterator[Finding]:
    for i, source in enumerate(recipe.data.sources):
        key = f"data.sources.{i}"
        if isinstance(source, FileSourceSection):
            yield _first_rows(f"{key}.path", source)
        else:
            yield _text(key, getattr(source, "path", None), getattr(source, "dataset", None))
    for i, task in enumerate(recipe.evaluation.tasks):
        yield _text(f"evaluation.tasks.{i}", task.path, task.dataset)


def _first_rows(key: str, section: FileSourceSection) -> Finding:
    try:
        look = first_rows(section)
    except DataError as error:
        found, _, fix = str(error).rpartition(": ")
        is_absent = "there is no such file" in str(error) or not found
        halves = (str(error), "give the path of text files") if is_absent else (found, fix)
        return Finding(key, *halves, DataError.exit_code)
    return Finding(key, look.found, look.fix, DataError.exit_code if look.fix else 0, look.is_sure)


def _text(key: str, path: str | None, dataset: str | None) -> Finding:
    if path is None:
        assert dataset is not None, "the section asks for one of both"
        finding = _model(f"{key}.dataset", dataset, DataError.exit_code)
        return finding if finding.exit_code else replace(finding, is_sure=False)  # its rows are read by `prepare`
    try:
        number = len(find_files(path))
    except DataError as error:
        return Finding(f"{key}.path", str(error), "give the path of text files", DataError.exit_code)
    return Finding(f"{key}.path", f"{path}: {number} file{'s' * (number != 1)}, not read here", is_sure=False)


def _capabilities(recipe: Recipe) -> Iterator[Finding]:
    """Find what the recipe asks of teachers and they cannot give; `Recipe` itself refuses most of that."""
    drawn = [teacher.name for teacher in recipe.teachers_to_cache]
    if drawn and recipe.cache.mode == "sampled" and recipe.objective.reads_lists:
        linear = typed("objective.divergence=forward_kl", "objective.fusion=mixture")
        fix = f"keep lists, {typed('cache.mode=top_k')}, or take {linear}"
        found = f"sampled draws of teacher {drawn[0]!r} serve the forward KL to a mixture only"
        yield Finding("cache.mode", found, fix, TeacherError.exit_code)
    if recipe.data.mixing.kind == "ddk" and not recipe.teachers:
        fix = f"add teachers, or take {typed('data.mixing={kind: natural}')}"
        yield Finding("data.mixing", "ddk compares the student with teachers", fix, RecipeError.exit_code)


def _lengths(recipe: Recipe) -> Iterator[Finding]:
    for complaint in complaints(recipe, most_blocks(recipe), is_bound=True):
        code = RecipeError.exit_code if complaint.is_error else 0
        yield Finding(complaint.key, complaint.found, complaint.fix, code)


def _packages(recipe: Recipe) -> Iterator[Finding]:
    for needed in _needed(recipe):
        if importlib.util.find_spec(needed.module) is None:
            found = f"package {needed.module} is not installed here"
            yield Finding(needed.key, found, needed.fix, needed.exit_code)


class _Package(NamedTuple):
    """A module that a key of the recipe needs, how to get it, and the exit code of a run without it."""

    key: str
    module: str
    fix: str
    exit_code: int


def _needed(recipe: Recipe) -> Iterator[_Package]:
    """Optional packages that the recipe uses, installed or not."""
    named = {f"teachers.{i}.model": t.references.get("model") for i, t in enumerate(recipe.teachers)}
    models = {key: model for key, model in named.items() if model is not None}
    models["student.model"] = recipe.student.model
    for key, model in models.items():
        if model.endswith(".gguf"):
            code = DataError.exit_code if key.startswith("student") else TeacherError.exit_code
            yield _Package(key, "gguf", _extra("demo"), code)
    for i, teacher in enumerate(recipe.teachers):
        if teacher.alignment.carry == "min_ed":
            yield _Package(f"teachers.{i}.alignment.carry", "rapidfuzz", _extra("align"), DataError.exit_code)
    if recipe.evaluation.generation is not None:
        yield _Package("evaluation.generation", "sacrebleu", _extra("eval"), RecipeError.exit_code)
    if any(task.task == "summarization" for task in recipe.evaluation.tasks):
        yield _Package("evaluation.tasks", "rouge_score", _extra("eval"), RecipeError.exit_code)
    urls = {f"teachers.{i}.path": t.cache_path or "" for i, t in enumerate(recipe.teachers)}
    urls["cache.directory"] = recipe.cache.directory or ""
    for key, url in urls.items():
        if module := _filesystem_of(url):
            yield _Package(key, module, f"pip install {module}, or use a path", DataError.exit_code)
    for name in recipe.training.report_to:
        if name in _TRACKERS:
            how = f"pip install {name}, or leave it out"
            yield _Package("training.report_to", _TRACKERS[name], how, RecipeError.exit_code)


def _filesystem_of(url: str) -> str | None:
    """The package that reads a URL; None for a path, and where fsspec will say what it does not know."""
    protocol, separator, _ = url.partition("://")
    if not separator:
        return None
    from fsspec.registry import known_implementations

    known = known_implementations.get(protocol, {"class": ""})["class"]
    return str(known).partition(".")[0] or None


_TRACKERS: Mapping[str, str] = {
    name: name for name in ("wandb", "trackio", "mlflow", "clearml", "swanlab", "comet_ml", "tensorboard")
}
"""Trackers of transformers that are one package, and the module of it."""


def _extra(name: str) -> str:
    return f"pip install 'collegium[{name}]'"
