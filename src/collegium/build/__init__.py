"""From a recipe to objects: the only place where a `kind:` string meets a class.

Components take plain arguments; the functions here read the sections and pass them on. What teachers
provide is compared here, once, with what the objective needs.
"""

from collegium.build.cache import (
    build_builder,
    build_teachers,
    cache_location,
    cache_plan,
    cached_text,
    open_cache,
    require_plain,
)
from collegium.build.calibration import fit_recipe
from collegium.build.continuation import PastRun, first_student, past_runs
from collegium.build.generation import build_prompts, build_references, build_writing, measure_generation
from collegium.build.ingredients import (
    Ingredients,
    build_ingredients,
    build_text,
    own_ingredients,
    prepared_text,
    student_tokenizer,
    teacher_tokenizer,
)
from collegium.build.lineage import lineage_of
from collegium.build.models import load_teachers
from collegium.build.objective import build_objective, build_rule, build_target, build_weighting, own_rule
from collegium.build.samples import build_samples
from collegium.build.student import build_student
from collegium.build.tasks import answer_tasks, build_tasks, measure_tasks, student_sheet, teacher_sheets
from collegium.build.tokenizers import Sample, compare_teachers, sample_text
from collegium.build.training import build_held_out, build_trainer, describe_held_out


__all__ = [
    "Ingredients",
    "PastRun",
    "Sample",
    "answer_tasks",
    "build_builder",
    "build_held_out",
    "build_ingredients",
    "build_objective",
    "build_prompts",
    "build_references",
    "build_rule",
    "build_samples",
    "build_student",
    "build_target",
    "build_tasks",
    "build_teachers",
    "build_text",
    "build_trainer",
    "build_weighting",
    "build_writing",
    "cache_location",
    "cache_plan",
    "cached_text",
    "compare_teachers",
    "describe_held_out",
    "first_student",
    "fit_recipe",
    "lineage_of",
    "load_teachers",
    "measure_generation",
    "measure_tasks",
    "open_cache",
    "own_ingredients",
    "own_rule",
    "past_runs",
    "prepared_text",
    "require_plain",
    "sample_text",
    "student_sheet",
    "student_tokenizer",
    "teacher_sheets",
    "teacher_tokenizer",
]
