"""The figures of a finished student, and what the report shows beside them.

The student before training, its teachers and what they come to when fused, paired differences from each of them
on the same documents, passages token by token, continuations side by side, and what was logged in training. It
costs a pass of the student before training over held-out text, one comparison of the teachers' distributions, and
the few texts that are written.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel

from collegium.assembly.run import Run
from collegium.assembly.samples import build_samples
from collegium.assembly.training import describe_held_out
from collegium.base.progress import Phase
from collegium.evaluation.language_modeling import DocumentSums, Rule
from collegium.evaluation.model_figures import measure_model
from collegium.evaluation.summary import (
    compare,
    covers_all,
    paired_differences,
    summarize,
    summarize_teachers,
)
from collegium.evaluation.target_figures import measure_target_figures
from collegium.losses.weighting import Weighting
from collegium.recipe.recipe import Recipe
from collegium.report import metric_names as names
from collegium.report.evaluation import DocumentLosses, Evaluation
from collegium.report.figures import Differences, PairedDifferences


STUDENT = "student"
"""The model that is measured after training."""

Tables = Mapping[str, DocumentSums]


def student_evaluation(run: Run, tables: Tables, *, model: str = STUDENT) -> Evaluation:
    """The student's own figures with intervals, as the recipe asks for them.

    Args:
        run: The run.
        tables: Figures of the student on held-out text.
        model: What was measured: `student`, or a model in its place.
    """
    with Phase("computing intervals"):
        measured = summarize(tables, **_resampling(run.recipe))
    return Evaluation(
        recipe=run.recipe.fingerprint,
        model=model,
        held_out=describe_held_out(run, sum(domain.tokens for domain in measured.domains.values())),
        confidence=run.recipe.evaluation.confidence,
        domains=measured.domains,
        mean=measured.mean,
    )


def beside_others(
    evaluation: Evaluation, run: Run, tables: Tables, student: PreTrainedModel, before: PreTrainedModel | None
) -> Evaluation:
    """Add single documents, the student before, teachers, differences, passages and continuations.

    Args:
        evaluation: Of the student.
        run: The run.
        tables: Figures of the student on held-out text.
        student: The student.
        before: The same before training, if that is known.
    """
    options = _resampling(run.recipe)
    differences = Differences()
    measured_before = measured_teachers = None
    if before is not None:
        with Phase("measuring the student before training"):
            past = measure_model(before, run.held_out, run.vocab_size)
        with Phase("computing intervals"):
            measured_before = summarize(past, **options)
            differences = replace(differences, before=paired_differences(compare(tables, past, **options)))
    if run.teachers:
        rule = run.rule or Rule(Weighting("uniform"))
        with Phase("measuring the teachers"):
            found = measure_target_figures(run.held_out, {names.FUSED: rule}, rule, stretches=(), with_pairs=False)
        others = {name: _per_token(figures.sums) for name, figures in found.items()}

        def gaps(figure: str) -> PairedDifferences:
            return paired_differences(compare(tables, _renamed(others, figure), **options))

        with Phase("computing intervals"):
            measured_teachers = summarize_teachers(others, **options)
            differences = replace(
                differences,
                fused=gaps(names.rule_nll(names.FUSED)),
                teachers={
                    teacher.name: gaps(names.of_teacher(teacher.name, names.NLL_FILLED))
                    for teacher in run.teachers
                    if covers_all(others, teacher.name)
                },
            )
    with Phase("reading and continuing held-out passages"):
        samples = build_samples(run, student, before)
    return replace(
        evaluation,
        documents=_documents(tables),
        before=measured_before,
        teachers=measured_teachers,
        differences=differences,
        passages=samples.passages,
        continuations=samples.continuations,
    )


def _resampling(recipe: Recipe) -> dict[str, Any]:
    section = recipe.evaluation
    return {"confidence": section.confidence, "num_samples": section.bootstrap_samples, "seed": recipe.seed}


def _documents(tables: Tables) -> dict[str, DocumentLosses]:
    """Tokens and loss of each held-out document, so that runs can be compared document by document."""
    return {
        name: DocumentLosses(
            tokens=tuple(int(count) for count in table.tokens),
            nll=tuple(round(float(total), 4) for total in table.sums[names.NLL]),
        )
        for name, table in tables.items()
    }


def _per_token(table: DocumentSums) -> DocumentSums:
    """Without figures that are no number a token."""
    return replace(table, sums={name: sums for name, sums in table.sums.items() if sums.dim() == 1})


def _renamed(tables: Tables, figure: str) -> dict[str, DocumentSums]:
    return {name: replace(table, sums={names.NLL: table.sums[figure]}) for name, table in tables.items()}
