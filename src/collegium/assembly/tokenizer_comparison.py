"""The tokenizers of a recipe's teachers beside the student's, on the recipe's text; no weights are read."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from collegium.alignment.comparison import ModelTokenizer, ReadText, compare
from collegium.alignment.tokenizer_match import tokenizer_fingerprint
from collegium.alignment.verdict import Approximation, Comparison, unusable
from collegium.assembly.sources import build_source
from collegium.assembly.tokenizers import begins_with_bos, rows_of, student_rows, teacher_tokenizer
from collegium.base.errors import DataError, TeacherError
from collegium.base.progress import Phase
from collegium.cache.folder import Folder
from collegium.cache.manifest import read_manifest
from collegium.data.prepared import PreparedText
from collegium.data.tokenization import DocumentTokenizer
from collegium.models.pretrained import load_tokenizer
from collegium.recipe.recipe import Recipe
from collegium.recipe.sections.models import CachedTeacherSection, LocalTeacherSection


if TYPE_CHECKING:
    from collegium.assembly.run import Run

SAMPLE_SIZE = 2**15
"""Characters of each domain that tokenizers are compared on."""

Sample = Mapping[str, Sequence[ReadText]]
"""Some text of each domain, as the student's tokens."""


def sample_text(run: "Run", prepared: PreparedText | None) -> Sample:
    """Some of the recipe's text: held-out documents, or the first of each source where nothing is prepared.

    Raises:
        DataError: a source cannot be read.
    """
    recipe = run.recipe
    add_bos = begins_with_bos(recipe.data.add_bos, run.tokenizer)
    encoder = DocumentTokenizer(run.tokenizer, add_bos=add_bos, add_eos=recipe.data.add_eos)
    sample = {}
    with Phase("reading some text", total=len(recipe.domains), unit="domains") as phase:
        for name in phase.counted(recipe.domains):
            texts = _first_texts(recipe, name) if prepared is None else iter(prepared.held_out_texts(name))
            chosen = list(_at_most(texts, SAMPLE_SIZE))
            sample[name] = [
                ReadText(text.encode(), document.tokens.astype("int64"), document.byte_ends)
                for text, document in zip(chosen, encoder.encode(chosen), strict=True)
            ]
    return sample


def _first_texts(recipe: Recipe, name: str) -> Iterator[str]:
    section = next(source for source in recipe.data.sources if source.name == name)
    for document in build_source(section):
        if document.problem is None and len(document.text) >= max(1, section.min_characters):
            yield document.text


def _at_most(texts: Iterator[str], size: int) -> Iterator[str]:
    """The first texts, so many characters together."""
    for text in texts:
        yield text[:size]
        size -= len(text)
        if size <= 0:
            return


def compare_teachers(run: "Run", sample: Sample) -> tuple[Comparison, ...]:
    """Compare the tokenizer of each teacher with the student's.

    Args:
        run: The run.
        sample: Some text, from `sample_text`.

    Raises:
        DataError: the student's configuration cannot be read.
    """
    with Phase("comparing tokenizers", total=len(run.recipe.teachers), unit="teachers") as phase:
        return _Comparer(run, sample).compare_all(phase)


class _Comparer:
    """Reads each tokenizer once, however many teachers share it."""

    def __init__(self, run: "Run", sample: Sample) -> None:
        self._recipe = run.recipe
        self._sample = sample
        self._student = ModelTokenizer(run.tokenizer, student_rows(run.recipe))
        self._tokenizers = {_of_student(run.recipe): self._student}
        self._found: dict[str, Comparison] = {}

    def compare_all(self, phase: Phase) -> tuple[Comparison, ...]:
        """Compare each teacher, in order."""
        return tuple(self._compare(section) for section in phase.counted(self._recipe.teachers))

    def _compare(self, section: LocalTeacherSection | CachedTeacherSection) -> Comparison:
        domains = section.domains or self._recipe.domains
        key = f"{_key(section)} {_approximation(section)} {sorted(domains)}"
        if key not in self._found:
            try:
                teacher = self._tokenizer(section)
            except (DataError, TeacherError, OSError) as error:
                return unusable(section.name, str(error).removeprefix(f"teacher {section.name!r}: "))
            texts = [text for name in domains for text in self._sample.get(name, ())]
            approximate = _approximation(section)
            self._found[key] = compare(section.name, self._student, teacher, texts, approximate=approximate)
        return replace(self._found[key], teacher=section.name)

    def _tokenizer(self, section: LocalTeacherSection | CachedTeacherSection) -> ModelTokenizer:
        key = _key(section)
        if key not in self._tokenizers:
            self._tokenizers[key] = self._of_cache(section) if section.kind == "cached" else _of_model(section)
        return self._tokenizers[key]

    def _of_cache(self, section: CachedTeacherSection) -> ModelTokenizer:
        """The tokenizer that a cache was made with; its model may not be on this machine."""
        tokenizer = teacher_tokenizer(section)
        if tokenizer is not None:
            return ModelTokenizer(tokenizer)
        teacher = read_manifest(Folder.at(section.path)).teacher
        if teacher.fingerprint.endswith(f"/{tokenizer_fingerprint(self._student.tokenizer)}"):
            return self._student
        return ModelTokenizer(load_tokenizer(teacher.model))


def _approximation(section: LocalTeacherSection | CachedTeacherSection) -> Approximation:
    keys = section.alignment
    return "all" if keys.carry == "min_ed" else keys.approximate


def _key(section: LocalTeacherSection | CachedTeacherSection) -> str:
    if isinstance(section, CachedTeacherSection):
        return f"{section.path} {section.tokenizer}"
    return _model_key(section.model, section.revision, section.trust_remote_code)


def _of_student(recipe: Recipe) -> str:
    """Key of a teacher that is the student's model too."""
    student = recipe.student
    if student.tokenizer or student.kind == "config":
        return ""
    return _model_key(student.model, student.revision, student.trust_remote_code)


def _model_key(model: str, revision: str | None, trust_remote_code: bool) -> str:
    return f"{model}@{revision} {trust_remote_code}"


def _of_model(section: LocalTeacherSection) -> ModelTokenizer:
    tokenizer = teacher_tokenizer(section)
    assert tokenizer is not None, "a model has one"
    return ModelTokenizer(tokenizer, rows_of(section.model, section.revision, section.trust_remote_code))
