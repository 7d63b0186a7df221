"""The five tasks: their items, and what a student and its teachers make of them."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from collegium.alignment.tokenizer_match import tokenizer_difference
from collegium.assembly.ingredients import Ingredients, adds_bos, build_task_source, teacher_tokenizer
from collegium.assembly.models import load_teachers
from collegium.base.errors import DataError
from collegium.base.terminal import say
from collegium.evaluation.answers import AnswerSheet
from collegium.evaluation.task_figures import rouge_scorer
from collegium.evaluation.tasks import TaskItems, TaskResult, measure_task, summarize_tasks
from collegium.recipe.recipe import Recipe
from collegium.recipe.sections.models import LocalTeacherSection
from collegium.recipe.sections.tasks import TaskEvaluationSection
from collegium.signals.contracts import Capability, Teacher
from collegium.teachers.local import LocalTeacher


def build_tasks(recipe: Recipe) -> list[TaskItems]:
    """The items of `evaluation.tasks`; none if the recipe names no task.

    Raises:
        DataError: a set cannot be read, or has no item.
        RecipeError: rouge-score is not installed, and there are summaries.
    """
    sections = recipe.evaluation.tasks
    if any(section.task == "summarization" for section in sections):
        rouge_scorer()
    return [_items_of(section) for section in sections]


def _items_of(section: TaskEvaluationSection) -> TaskItems:
    items = build_task_source(section.label, section).some_items(section.max_items)
    if not items:
        raise DataError(
            f"evaluation.tasks {section.label!r}: {section.path or section.dataset} has no item of part "
            f"{section.part}: give more data, or another part or evaluation_share"
        )
    return TaskItems.of(section.label, section.task, items, max_new_tokens=section.max_new_tokens)


def measure_tasks(
    recipe: Recipe,
    ingredients: Ingredients,
    teachers: Sequence[Teacher],
    model: PreTrainedModel,
    *,
    device: torch.device,
) -> dict[str, Any] | None:
    """Have a model and its teachers do the tasks; None if the recipe names none."""
    tasks = build_tasks(recipe)
    if not tasks:
        return None
    section = recipe.evaluation
    own = answer_tasks(student_sheet(recipe, ingredients, model, device=device), tasks)
    theirs: dict[str, list[TaskResult]] = {}
    if section.task_teachers:
        for sheet in teacher_sheets(recipe, ingredients, teachers, device=device):
            theirs[sheet.model.name] = answer_tasks(sheet, tasks)
    return summarize_tasks(
        own,
        theirs,
        confidence=section.confidence,
        num_samples=section.bootstrap_samples,
        seed=recipe.seed,
    )


def answer_tasks(model: AnswerSheet, tasks: Sequence[TaskItems]) -> list[TaskResult]:
    """Have a model do all tasks."""
    results = []
    for task in tasks:
        say(f"task {task.name}: {len(task.items)} items, answered by {model.model.name}")
        results.append(measure_task(model, task))
    return results


def student_sheet(
    recipe: Recipe, ingredients: Ingredients, model: PreTrainedModel, *, device: torch.device
) -> AnswerSheet:
    """A model with the recipe's tokenizer, frozen from here on."""
    tokenizer, told = ingredients.tokenizer, recipe.data.add_bos
    add_bos = told if isinstance(told, bool) else adds_bos(tokenizer)
    frozen = LocalTeacher("student", model, vocab_size=ingredients.vocab_size, fingerprint="student")
    return AnswerSheet(frozen, tokenizer, add_bos=add_bos, device=device)


def teacher_sheets(
    recipe: Recipe, ingredients: Ingredients, teachers: Sequence[Teacher], *, device: torch.device
) -> list[AnswerSheet]:
    """The teachers of a recipe that are local models, each with its own tokenizer.

    Those that a cache stands for in training are loaded now.

    Raises:
        TeacherError: one cannot be loaded.
    """
    running = {t.name: t.native for t in teachers if Capability.GENERATE in t.native.provides}
    sections = [s for s in recipe.teachers if isinstance(s, LocalTeacherSection)]
    lacking = [s.at_one for s in sections if s.name not in running]
    for teacher in load_teachers(lacking, ingredients.tokenizer, device=device):
        running[teacher.name] = teacher.native
    return [_teacher_sheet(recipe, s, running[s.name], ingredients.tokenizer, device) for s in sections]


def _teacher_sheet(
    recipe: Recipe,
    section: LocalTeacherSection,
    teacher: Teacher,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
) -> AnswerSheet:
    own = teacher_tokenizer(section)
    assert own is not None, "a model has one"
    told = recipe.data.add_bos
    if tokenizer_difference(tokenizer, own) is None:
        add_bos = told if isinstance(told, bool) else adds_bos(tokenizer)
        return AnswerSheet(teacher, tokenizer, add_bos=add_bos, device=device)
    return AnswerSheet(teacher, own, add_bos=adds_bos(own), device=device)
