"""One run: a recipe, a device and a folder, and every part that is made from them, once and on demand.

Nothing is read or loaded before it is asked for, torch included, so a run costs nothing to make:

    run = Run.from_recipe("recipe.yaml", overrides=["seed=1"], device="cpu")
    run.teachers        # loads the tokenizer, prepares the text, fits temperatures, loads the teachers
    run.held_out        # the held-out text, with those same teachers

A part is kept for as long as its run is. Where there are several processes, all of them must ask for the same
parts in the same order: the first one prepares text, fits temperatures and chooses what is kept of a student.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from collegium.recipe.file import load_recipe, load_run_recipe
from collegium.recipe.recipe import Recipe


if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from collegium.assembly.calibration import Temperatures
    from collegium.assembly.continuation import PastRun
    from collegium.assembly.corpus import Corpus
    from collegium.data.collate import BlockCollator
    from collegium.data.prepared import PreparedText
    from collegium.evaluation.generation import Prompts, References
    from collegium.evaluation.language_modeling import HeldOut, Rule
    from collegium.evaluation.tasks import TaskItems
    from collegium.models.probe import BlockShape
    from collegium.recipe.sections.models import TeachingSection
    from collegium.signals.contracts import Teacher
    from collegium.training.trainer import DistillationTrainer

Part = Literal["past_runs", "text", "prompts", "tasks", "fitted", "teachers", "references", "held_out", "student"]
"""Parts whose making can fail, or takes long, before a run has done anything."""


class Run:
    """A recipe with the parts that it says, each made when it is first asked for.

    Args:
        recipe: The whole configuration.
        device: Where models run; by default this process's GPU, or the CPU.
        folder: Where fitted temperatures, the choice of a student's layers and checkpoints are kept, and read
            again by a run that goes on. By default they are kept nowhere, and nothing can be trained.
    """

    def __init__(
        self, recipe: Recipe, *, device: "torch.device | str | None" = None, folder: Path | None = None
    ) -> None:
        self.recipe = recipe
        self.folder = folder
        self._device = device
        self._own_corpora: dict[int, Corpus] = {}

    @classmethod
    def from_recipe(
        cls,
        path: Path | str,
        *,
        overrides: Sequence[str] = (),
        device: "torch.device | str | None" = None,
        folder: Path | None = None,
    ) -> Self:
        """A run by a recipe file.

        Args:
            path: YAML file.
            overrides: `dotted.key=value` pairs, as on the command line.
            device: As of the class.
            folder: As of the class.

        Raises:
            RecipeError: with one line for each mistake.
        """
        return cls(load_recipe(Path(path), overrides), device=device, folder=folder)

    @classmethod
    def from_folder(cls, folder: Path, *, device: "torch.device | str | None" = None) -> Self:
        """A run that is in its folder already.

        Its `student` is the one before training; the trained one is in `student/`.

        Raises:
            RecipeError: its recipe cannot be read.
        """
        return cls(load_run_recipe(folder / "recipe.yaml"), device=device, folder=folder)

    def derive(
        self,
        *,
        recipe: Recipe | None = None,
        folder: Path | None = None,
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        text: "PreparedText | None" = None,
        teachers: "Sequence[Teacher] | None" = None,
        held_out: "HeldOut | None" = None,
        student: "PreTrainedModel | PeftModel | None" = None,
    ) -> "Run":
        """A run on the same text and device with another recipe or folder, or with parts that are given.

        Tokenizer and text are shared as far as they are made; the other parts are made again unless they are
        given, since they follow from the recipe.

        Args:
            recipe: Of the new run; it must name the same text and tokenizer.
            folder: Of the new run.
            tokenizer: In place of the recipe's.
            text: In place of what the recipe names.
            teachers: In place of the recipe's, in its order.
            held_out: In place of what follows from text and teachers.
            student: In place of the recipe's.
        """
        derived = Run(recipe or self.recipe, device=self._device, folder=folder or self.folder)
        made = {name: vars(self)[name] for name in ("device", "tokenizer", "text") if name in vars(self)}
        given = {
            "tokenizer": tokenizer,
            "text": text,
            "teachers": teachers,
            "held_out": held_out,
            "student": student,
        }
        if tokenizer is None and text is None:
            derived._own_corpora = self._own_corpora  # they follow from tokenizer and text alone
        vars(derived).update(made | {name: part for name, part in given.items() if part is not None})
        return derived

    def make(self, *parts: Part) -> None:
        """Make parts now, in this order: so that an error comes before hours of work, or to measure the time."""
        for part in parts:
            getattr(self, part)

    # ---- device, tokenizer and text

    @cached_property
    def device(self) -> "torch.device":
        """The device that models run on."""
        import torch

        from collegium.assembly.process import process_device

        return process_device() if self._device is None else torch.device(self._device)

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The student's tokenizer."""
        from collegium.assembly.tokenizers import student_tokenizer

        return student_tokenizer(self.recipe)

    @cached_property
    def text(self) -> "PreparedText":
        """The prepared text; at once if it is on disk already."""
        from collegium.assembly.corpus import shared_text

        return shared_text(self)

    @cached_property
    def corpus(self) -> "Corpus":
        """Text and tokenizer together."""
        from collegium.assembly.corpus import Corpus

        return Corpus(self.tokenizer, self.text)

    def corpus_of(self, section: "TeachingSection") -> "Corpus":
        """The text in the tokens of a teacher's own tokenizer; `corpus` itself where that is the student's too.

        Raises:
            TeacherError: its tokenizer cannot be found.
            DataError: it is not certain that the text is the same.
        """
        from collegium.assembly.corpus import own_corpus
        from collegium.assembly.tokenizers import teacher_tokenizer

        key = id(teacher_tokenizer(section))  # of an object that is kept for the life of the process
        if key not in self._own_corpora:
            self._own_corpora[key] = own_corpus(self, section)
        return self._own_corpora[key]

    @cached_property
    def vocab_size(self) -> int:
        """Tokens that the student's tokenizer knows."""
        from collegium.alignment.tokenizer_match import vocab_size_of

        return vocab_size_of(self.tokenizer)

    @property
    def domains(self) -> list[str]:
        """Names of the domains, in the order of `Batch.domain_ids`."""
        return self.corpus.domains

    @property
    def collator(self) -> "BlockCollator":
        """Makes batches of packed blocks; tokens of prompts are not predicted."""
        return self.corpus.collator

    @property
    def block_shape(self) -> "BlockShape":
        """The largest batch of blocks that a model reads."""
        from collegium.models.probe import BlockShape

        recipe = self.recipe
        rows = (recipe.training.batch_size, recipe.evaluation.batch_size, recipe.cache.batch_size)
        return BlockShape(max(rows), recipe.data.block_size)

    # ---- teachers

    @cached_property
    def _fit(self) -> "tuple[Recipe, Temperatures]":
        from collegium.assembly.calibration import fit_recipe

        return fit_recipe(self)

    @property
    def fitted(self) -> Recipe:
        """The recipe with numbers in place of temperatures that say `fit`."""
        return self._fit[0]

    @property
    def temperatures(self) -> "Temperatures":
        """The fits behind those numbers: by teacher, and by key of the recipe."""
        return self._fit[1]

    @cached_property
    def teachers(self) -> "Sequence[Teacher]":
        """The teachers in the recipe's order, loaded or read from their caches."""
        from collegium.assembly.teachers import build_teachers

        return build_teachers(self)

    @cached_property
    def rule(self) -> "Rule | None":
        """The fusion of teachers that the student learns; None where it follows the student of each step."""
        from collegium.assembly.objective import own_rule

        return own_rule(self.recipe)

    # ---- what is measured

    @cached_property
    def held_out(self) -> "HeldOut":
        """Held-out text, with the teachers' view of it."""
        from collegium.assembly.training import build_held_out

        return build_held_out(self)

    @cached_property
    def tasks(self) -> "Sequence[TaskItems]":
        """The items of `evaluation.tasks`; none if the recipe names no task."""
        from collegium.assembly.tasks import build_tasks

        return build_tasks(self.recipe.evaluation)

    @cached_property
    def prompts(self) -> "dict[str, Prompts]":
        """Beginnings of held-out documents, by domain; none if continuations are not asked for."""
        from collegium.assembly.generation import build_prompts

        return build_prompts(self)

    @cached_property
    def references(self) -> "References | None":
        """The prompts with how documents and teachers continue them; None if continuations are not asked for."""
        from collegium.assembly.generation import build_references

        return build_references(self)

    @cached_property
    def past_runs(self) -> "Sequence[PastRun]":
        """The finished runs that this one continues, the newest first."""
        from collegium.assembly.continuation import past_runs

        return past_runs(self.recipe)

    # ---- the student and its training

    @cached_property
    def student(self) -> "PreTrainedModel | PeftModel":
        """The student before training; once the trainer is made, the one that it trains."""
        from collegium.assembly.student import build_student

        return build_student(self)

    @cached_property
    def trainer(self) -> "DistillationTrainer":
        """The training loop over student, teachers and text.

        Raises:
            RecipeError: the run has no folder.
        """
        from collegium.assembly.training import build_trainer

        return build_trainer(self)
