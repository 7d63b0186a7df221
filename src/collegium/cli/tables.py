"""Results as tables for people or JSON for programs."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from collegium.alignment.verdict import Comparison, Overlap, TokenizerFacts
from collegium.base.errors import DataError
from collegium.base.terminal import (
    say,
    show,
    show_json,
    show_table,
)
from collegium.cache.verify import Verdict
from collegium.losses.calibration import FittedTemperature
from collegium.pipeline.doctor import Diagnosis
from collegium.report.evaluation import Continual, Evaluation
from collegium.report.evaluation_file import NAME, as_content
from collegium.report.figures import by_metric
from collegium.report.interval import Interval
from collegium.report.metric_names import KL_COMMON, is_kl
from collegium.report.samples import Generation, HarnessScores, TaskScores


def show_temperatures(temperatures: Mapping[str, Mapping[str, FittedTemperature]]) -> None:
    """Show the fitted temperatures with the loss and the gap that they leave."""
    rows = [
        [
            f"{name} {key}",
            f"{fit.temperature:.3f}{' (bound)' if fit.at_bound else ''}",
            *(f"{figure:.3f}" for figure in (fit.raw_nll, fit.nll, fit.raw_gap, fit.gap)),
        ]
        for name, fits in temperatures.items()
        for key, fit in fits.items()
    ]
    columns = ["", "fitted", "loss before", "after", "gap before", "after"]
    show_table("Temperatures, fitted on training text (gap: loss minus entropy)", columns, rows)


def show_diagnosis(diagnosis: Diagnosis, *, as_json: bool) -> None:
    """Show a line for each check and a table for each pair of tokenizers.

    Raises:
        UserError: the first finding that stops every run of the recipe.
    """
    failure = diagnosis.failure
    if as_json and failure is None:
        show_json(dataclasses.asdict(diagnosis))
    elif failure is not None and as_json:
        failure.report = dataclasses.asdict(diagnosis)
    else:
        _show_checks(diagnosis)
    if failure is not None:
        raise failure


def _show_checks(diagnosis: Diagnosis) -> None:
    for check in diagnosis.checks:
        if check.fix is None:
            show(f"ok    {check.name}: {check.found}")
        else:
            show(f"fix   {check.name}: {check.found}; {check.fix}")
    show_tokenizers(diagnosis.tokenizers)


def show_tokenizers(pairs: Sequence[Comparison]) -> None:
    """Show what each teacher's tokenizer shares with the student's, and what follows from it."""
    for pair in pairs:
        title = f"\nTeacher {pair.teacher}: {pair.verdict}"
        if pair.student is None or pair.own is None or pair.overlap is None:
            show(title)
        else:
            columns = ["", "student", pair.teacher]
            show_table(title, columns, [*_facts(pair.student, pair.own), *_overlap(pair.overlap)])
        for warning in pair.warnings:
            show(f"warning: {warning}")


def _facts(student: TokenizerFacts, own: TokenizerFacts) -> list[list[str]]:
    sides = (student, own)
    lost = ["not known" if s.lost_bytes is None else f"{s.lost_bytes:,} of {s.num_bytes:,}" for s in sides]
    return [
        ["tokens", *(f"{s.num_tokens:,}" for s in sides)],
        ["rows of the model's vocabulary", *(f"{s.num_rows:,}" for s in sides)],
        ["BOS", *(_bos(s) for s in sides)],
        ["EOS", *(_special(s.eos) for s in sides)],
        ["normalizers (left out for teachers)", *(", ".join(s.normalizers) or "none" for s in sides)],
        ["bytes per token of this text", *(_number(s.bytes_per_token) for s in sides)],
        ["bytes of this text lost", *lost],
    ]


def _overlap(overlap: Overlap) -> list[list[str]]:
    differing = f"{overlap.num_special:,}"
    if overlap.special:
        named = ", ".join(f"{token} {_id(ours)}/{_id(theirs)}" for token, ours, theirs in overlap.special[:2])
        differing += f": {named}"
    shares = (overlap.shared_of_student, overlap.shared_of_teacher)
    return [
        ["share of tokens with the same bytes", *(f"{share:.1%}" for share in shares)],
        ["tokens with the same bytes", "", f"{overlap.shared:,}"],
        ["and the same id", "", f"{overlap.same_ids:,}"],
        ["special tokens that differ (ids)", "", differing],
        ["student tokens for each of the teacher's", "", _number(overlap.student_per_teacher)],
        *([f"positions {name}", "", f"{share:.1%}"] for name, share in (overlap.shares or {}).items()),
    ]


def _bos(tokenizer: TokenizerFacts) -> str:
    token = _special(tokenizer.bos)
    return f"{token} before a text" if tokenizer.begins_with_bos else token


def _special(token: tuple[str, int] | None) -> str:
    return "none" if token is None else f"{token[0]} ({token[1]})"


def _id(token_id: int | None) -> str:
    return "-" if token_id is None else str(token_id)


def _number(value: float | None) -> str:
    return "not known" if value is None else f"{value:.2f}"


def show_evaluation(evaluation: Evaluation, folder: Path, *, as_json: bool) -> None:
    """Show figures by domain with their intervals, and whatever else was measured."""
    if as_json:
        show_json(as_content(evaluation))
        return
    domains = [by_metric(domain.figures) for domain in evaluation.domains.values()]
    mean = by_metric(evaluation.mean)
    rows = []
    for name in dict.fromkeys(name for domain in domains for name in domain):
        named = f"{name} (not for ranking)" if is_kl(name) and name != KL_COMMON else name
        cells = [_with_interval(domain.get(name)) for domain in domains]
        rows.append([named, *cells, f"{mean[name]:.3f}" if name in mean else ""])
    show_table(
        f"{evaluation.model} on held-out text, {evaluation.confidence:.0%} intervals",
        ["", *evaluation.domains, "mean"],
        [
            ["documents", *(f"{domain.documents:,}" for domain in evaluation.domains.values()), ""],
            ["tokens", *(f"{domain.tokens:,}" for domain in evaluation.domains.values()), ""],
            *rows,
        ],
    )
    if evaluation.continual is not None:
        show_continual(evaluation.continual)
    if evaluation.generation is not None:
        show_generation(evaluation.generation)
    if evaluation.tasks:
        show_tasks(evaluation.tasks)
    if evaluation.lm_eval is not None:
        show_harness(evaluation.lm_eval)
    say(f"written to {folder / NAME}")


def show_generation(generation: Generation) -> None:
    """Show how continuations compare with the documents and with the teachers' own."""
    domains = generation.domains
    figures = dict.fromkeys(name for domain in domains.values() for name in domain.figures)
    rows = [[name, *(_with_interval(d.figures.get(name)) for d in domains.values())] for name in figures]
    title = (
        f"Greedy continuations: {generation.new_tokens} tokens after {generation.prompt_tokens} "
        f"of {domains['all'].documents} documents (teachers: {generation.teacher})"
    )
    show_table(title, ["", *domains], rows)


def show_tasks(tasks: Mapping[str, TaskScores]) -> None:
    """Show every figure of every task, beside baselines that read no prompt and the teachers."""
    teachers = list(dict.fromkeys(name for task in tasks.values() for name in task.teachers))
    rows = []
    for name, task in tasks.items():
        for figure, interval in task.figures.items():
            is_primary = figure == task.primary
            guesses = [task.baselines.get(guess) if is_primary else None for guess in ("random", "majority")]
            rows.append(
                [f"{name} ({task.items}) {figure}{' *' if is_primary else ''}", _with_interval(interval)]
                + ["" if guess is None else f"{guess:.3f}" for guess in guesses]
                + [_with_interval(task.teachers.get(teacher, {}).get(figure)) for teacher in teachers]
            )
    columns = ["", "student", "random", "majority", *(f"teacher {name}" for name in teachers)]
    show_table("Tasks (items; * stands for the task)", columns, rows)


def show_harness(found: HarnessScores) -> None:
    """Show the results of lm-eval."""
    rows = [
        [f"{task} {name}", f"{value:.4f}" if isinstance(value, float) else str(value)]
        for task, figures in found.results.items()
        for name, value in figures.items()
        if name not in ("alias", "name", "sample_len")
    ]
    show_table(f"lm-eval {found.lm_eval_version}", ["", ""], rows)


def show_continual(continual: Continual) -> None:
    """Show what was forgotten and gained since the runs that this one continues."""
    rows = [
        [
            domain,
            f"{figures.before:.3f}",
            f"{figures.final:.3f}",
            _with_interval(figures.forgetting),
            _with_interval(figures.learning),
            _with_interval(figures.forward_transfer),
        ]
        for domain, figures in continual.domains.items()
    ]
    mean = continual.mean
    means = [mean.forgetting, mean.learning, mean.forward_transfer]
    rows.append(["mean", "", f"{mean.final:.3f}", *("" if m is None else f"{m:.3f}" for m in means)])
    title = f"Since {', '.join(continual.runs)}: nats per token (forgetting below 0 and the others above are good)"
    show_table(title, ["", "before", "now", "forgetting", "learning", "forward transfer"], rows)


def show_verdict(verdict: Verdict, folder: str, *, as_json: bool) -> None:
    """Show the damage in a cache.

    Raises:
        DataError: there is some.
    """
    failure = DataError(f"{folder}: damaged; run `collegium cache repair {folder}`")
    failure.report = dataclasses.asdict(verdict)
    if as_json and not verdict.damages:
        show_json(failure.report)
    elif not as_json:
        _show_damages(verdict, folder)
    if verdict.damages:
        raise failure


def _show_damages(verdict: Verdict, folder: str) -> None:
    for damage in verdict.damages:
        say(f"{damage.name}: {damage.reason}{_rows(damage.rows)}")
    for name in verdict.strangers:
        say(f"{name}: not part of the cache, harmless")
    if not verdict.damages:
        say(f"{folder}: intact, every byte is as it was written")


def _rows(rows: Sequence[int]) -> str:
    if not rows:
        return ""
    spans = f"{rows[0]}" if len(rows) == 1 else f"{rows[0]} to {rows[-1]}"
    return f"; {len(rows)} rows cannot be read: {spans}"


def _with_interval(figure: Interval | None) -> str:
    return "" if figure is None else figure.with_ends(3)
