"""The scale of an experiment: text, teachers, student and budget, read from a YAML file.

The same code runs models of a million parameters on two cores and models from the hub on GPUs. Paths that begin
with `OUTPUT/` are in the folder of the results, which holds what a specification has made. No torch here.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from collegium.base.errors import RecipeError
from collegium.base.suggestion import did_you_mean
from collegium.recipe.file import read_mapping
from collegium.recipe.sections.base import Many, Name, Section


class TokenizerSpecification(Section):
    """A byte-level BPE tokenizer, made of the text of all sources."""

    vocab_size: int = Field(ge=258)
    """Number of tokens, special ones included."""
    characters: int = Field(default=1_000_000, ge=1)
    """Characters of each source to make it from."""


class TeacherSpecification(Section):
    """A teacher: a model that exists, or one made by a recipe."""

    model: str | None = None
    """Hub id, folder or file."""
    adapter: str | None = None
    """PEFT adapter on it."""
    recipe: str | None = None
    """Alternatively, the recipe that makes it, beside the specification."""
    sources: Many[Name] | None = None
    """Sources of the specification that it is trained on; all if not given, those of its recipe if empty."""
    seed: int = Field(default=0, ge=0)
    """Seed of its weights and order."""
    base: str | None = None
    """Model that the recipe adapts: the teacher is an adapter on it, and it is loaded once for all."""
    domains: Many[Name] | None = None
    """Sources in which it teaches; all if not given."""
    dtype: str = "float32"
    """Type of its weights when it teaches."""

    @model_validator(mode="after")
    def _is_or_is_made(self) -> Self:
        if (self.model is None) == (self.recipe is None):
            raise ValueError("give either model (which exists) or recipe (which makes it)")
        return self


class Specification(Section):
    """One scale of an experiment."""

    name: Name
    """Such as `small`; results of different scales are kept apart."""
    about: str
    """A sentence or two for readers of the results."""
    tokenizer: TokenizerSpecification | None = None
    """Tokenizer to make; none if the student's model has one."""
    models: dict[Name, dict[str, Any]] = Field(default_factory=dict)
    """Llama configurations to write to `OUTPUT/models/NAME`, with the tokenizer."""
    sources: dict[Name, dict[str, Any]]
    """Text by domain, as in a recipe, without `name`. Their first documents are the student's."""
    licences: dict[Name, str] = Field(default_factory=dict)
    """Licences of the text, by domain."""
    student_documents: dict[Name, int] = Field(default_factory=dict)
    """Documents at the beginning of each source that are kept from teachers that are made."""
    student_tokens: int | None = Field(default=None, ge=1)
    """Tokens of each source that the student reads."""
    teachers: dict[Name, TeacherSpecification]
    """All teachers that take part in any row."""
    experts: Annotated[Many[Name], Field(min_length=1)]
    """Teachers of the table, in the order of the figures; their uniform mixture is the common target."""
    copies: Many[Name] = ()
    """Teachers that differ by their seed alone."""
    bad: Name | None = None
    """A teacher of text that the student is not measured on."""
    recipe: dict[str, Any]
    """The student's recipe, without teachers and sources."""
    learning_rates: Annotated[Many[float], Field(min_length=1)]
    """Learning rates tried for every row on its first seed; validation text chooses one."""
    headline_seeds: int = Field(default=5, ge=1)
    """Number of seeds of the rows that claims rest on."""
    seeds: int = Field(default=3, ge=1)
    """Number of seeds of the other rows."""
    compute_factor: float = Field(default=1.0, ge=1)
    """Operations of a step with all experts running, as a multiple of those of a cross-entropy step."""
    task_items: int | None = Field(default=None, ge=1)
    """Maximum number of items for measuring students and teachers on each source of `kind: task`."""
    local_files: dict[Name, str] = Field(default_factory=dict)
    """Local copies of sources that are on the hub: a file or glob in the folder of local copies, or `package:`."""
    published_with_all: Many[Literal["tinybert", "mobilebert", "minilm", "dkd"]] = ()
    """Published methods that are also run with all teachers; those on inner states cost many times a step."""
    low_data_tokens: Many[int] = ()
    """Tokens of each source in the sweep over text."""

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        known = set(self.teachers)
        named = {*self.experts, *self.copies, *([self.bad] if self.bad else [])}
        if unknown := sorted(named - known):
            raise ValueError(f"experts, copies and bad name {unknown}, the teachers are {sorted(known)}")
        read = {name for teacher in self.teachers.values() for name in teacher.sources or ()}
        if unknown := sorted(read - set(self.sources)):
            raise ValueError(f"teachers read {unknown}, the sources are {sorted(self.sources)}")
        if unknown := sorted({*self.student_documents, *self.licences} - set(self.sources)):
            raise ValueError(
                f"student_documents and licences name {unknown}, the sources are {sorted(self.sources)}"
            )
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.models and self.tokenizer is None:
            raise ValueError("models are written with the tokenizer that is made: add `tokenizer`")
        if self.student_documents and self.student_tokens is None:
            raise ValueError("student_documents are kept from teachers: student_tokens must keep to them")
        if len(set(self.learning_rates)) < len(self.learning_rates):
            raise ValueError(f"learning_rates must differ, got {list(self.learning_rates)}")
        training = self.recipe.get("training")
        steps = training.get("max_steps") if isinstance(training, dict) else None
        if not isinstance(steps, int):
            raise ValueError("recipe.training.max_steps is missing: it is the budget of every row")
        return self


def load_specification(path: Path) -> Specification:
    """Read a specification.

    Raises:
        RecipeError: it cannot be read, or is not valid.
    """
    try:
        return Specification.model_validate(read_mapping(path))
    except ValidationError as error:
        raise RecipeError("\n".join(f"{path}: {_describe(issue)}" for issue in error.errors())) from None


_SECTIONS: Mapping[Any, type[Section]] = {"tokenizer": TokenizerSpecification, "teachers": TeacherSpecification}


def _describe(issue: Any) -> str:
    place = issue["loc"]
    key = ".".join(map(str, place)) or "specification"
    if issue["type"] == "extra_forbidden":
        known = sorted((Specification if len(place) == 1 else _SECTIONS[place[0]]).model_fields)
        return f"{key}: unknown key; {did_you_mean(place[-1], known)}"
    return f"{key}: {str(issue['msg']).removeprefix('Value error, ')}"


def with_local_files(specification: Specification, folder: Path, output: Path) -> Specification:
    """Replace the hub's data sets by local copies, in those sources that name one.

    The folder becomes `OUTPUT/local`, so that results do not depend on where it is.

    Raises:
        RecipeError: the specification names no copies, or there is no such folder.
    """
    if not specification.local_files:
        raise RecipeError(f"specification {specification.name}: names no local_files, so leave out --local")
    if not folder.is_dir():
        raise RecipeError(f"--local {folder}: not a folder; give the one that holds the local copies")
    output.mkdir(parents=True, exist_ok=True)
    link = output / "local"
    link.unlink(missing_ok=True)
    link.symlink_to(folder.resolve(), target_is_directory=True)
    sources = {
        name: source if name not in specification.local_files else _local(specification, name)
        for name, source in specification.sources.items()
    }
    return specification.model_copy(update={"sources": sources})


def _local(specification: Specification, name: str) -> dict[str, Any]:
    file = specification.local_files[name]
    hub = {"dataset", "config", "split", "revision"}
    kept = {key: value for key, value in specification.sources[name].items() if key not in hub}
    return {**kept, "path": file if file.startswith("package:") else f"OUTPUT/local/{file}"}


def in_folder(content: Any, output: Path) -> Any:
    """Replace `OUTPUT/` at the beginning of any string in `content` by the folder of the results."""
    if isinstance(content, Mapping):
        return {key: in_folder(value, output) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [in_folder(value, output) for value in content]
    if isinstance(content, str) and content.startswith("OUTPUT/"):
        return str(output / content.removeprefix("OUTPUT/"))
    return content
