"""The five tasks: their items, and how a student and its teachers answer them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from transformers import PreTrainedModel

from collegium.alignment.tokenizer_match import tokenizer_difference
from collegium.assembly.local_teachers import load_teachers
from collegium.assembly.sources import build_task_source
from collegium.assembly.tokenizers import adds_bos, begins_with_bos, teacher_tokenizer
from collegium.base.errors import DataError
from collegium.base.progress import Phase
from collegium.evaluation.answers import AnswerSheet
from collegium.evaluation.task_figures import rouge_scorer
from collegium.evaluation.tasks import TaskItems, TaskResult, measure_task, summarize_tasks
from collegium.recipe.sections.evaluation import EvaluationSection
from collegium.recipe.sections.models import LocalTeacherSection
from collegium.recipe.sections.tasks import TaskEvaluationSection
from collegium.report.samples import TaskScores
from collegium.signals.contracts import Capability, Teacher
from collegium.teachers.local import LocalTeacher


if TYPE_CHECKING:
    from collegium.assembly.run import Run


def build_tasks(section: EvaluationSection) -> list[TaskItems]:
    """Read the items of `evaluation.tasks`; none if the recipe names no task.

    Raises:
        DataError: a set cannot be read, or has no item.
        RecipeError: rouge-score is not installed, and there are summaries.
    """
    if any(task.task == "summarization" for task in section.tasks):
        rouge_scorer()
    return [_items_of(task) for task in section.tasks]


def _items_of(section: TaskEvaluationSection) -> TaskItems:
    items = build_task_source(section.label, section).some_items(section.max_items)
    if not items:
        raise DataError(
            f"evaluation.tasks {section.label!r}: {section.path or section.dataset} has no item of part "
            f"{section.part}: give more data, or another part or evaluation_share"
        )
    return TaskItems.of(section.label, section.task, items, max_new_tokens=section.max_new_tokens)


def measure_tasks(run: "Run", model: PreTrainedModel) -> dict[str, TaskScores] | None:
    """Have a model and its teachers do the tasks; None if the recipe names none."""
    if not run.tasks:
        return None
    section = run.recipe.evaluation
    own = answer_tasks(student_sheet(run, model), run.tasks)
    theirs: dict[str, list[TaskResult]] = {}
    if section.task_teachers:
        for sheet in teacher_sheets(run):
            theirs[sheet.model.name] = answer_tasks(sheet, run.tasks)
    return summarize_tasks(
        own,
        theirs,
        confidence=section.confidence,
        num_samples=section.bootstrap_samples,
        seed=run.recipe.seed,
    )


def answer_tasks(model: AnswerSheet, tasks: Sequence[TaskItems]) -> list[TaskResult]:
    """Have a model do all tasks."""
    results = []
    for task in tasks:
        with Phase(f"task {task.name}, answered by {model.model.name}"):
            results.append(measure_task(model, task))
    return results


def student_sheet(run: "Run", model: PreTrainedModel) -> AnswerSheet:
    """A model with the recipe's tokenizer, frozen from here on."""
    add_bos = begins_with_bos(run.recipe.data.add_bos, run.tokenizer)
    frozen = LocalTeacher("student", model, vocab_size=run.vocab_size, fingerprint="student")
    return AnswerSheet(frozen, run.tokenizer, add_bos=add_bos, device=run.device)


def teacher_sheets(run: "Run") -> list[AnswerSheet]:
    """The teachers of a run that are local models, each with its own tokenizer.

    Those that a cache stands for in training are loaded now.

    Raises:
        TeacherError: one cannot be loaded.
    """
    running = {t.name: t.native for t in run.teachers if Capability.GENERATE in t.native.provides}
    sections = run.recipe.local_teachers
    lacking = [s.at_one for s in sections if s.name not in running]
    for teacher in load_teachers(lacking, run.tokenizer, device=run.device, shape=run.block_shape):
        running[teacher.name] = teacher.native
    return [_teacher_sheet(run, s, running[s.name]) for s in sections]


def _teacher_sheet(run: "Run", section: LocalTeacherSection, teacher: Teacher) -> AnswerSheet:
    own = teacher_tokenizer(section)
    assert own is not None, "a model has one"
    if tokenizer_difference(run.tokenizer, own) is None:
        add_bos = begins_with_bos(run.recipe.data.add_bos, run.tokenizer)
        return AnswerSheet(teacher, run.tokenizer, add_bos=add_bos, device=run.device)
    return AnswerSheet(teacher, own, add_bos=adds_bos(own), device=run.device)
