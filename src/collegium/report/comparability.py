"""Reasons why figures of two runs cannot stand in one column, and what their recipes have different.

A perplexity is of a text, in the tokens of a tokenizer, over a length of context. A KL is to a target: with other
teachers, or teachers at other temperatures, it is to another one, and a smaller number says nothing.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from collegium.recipe.file import content_differences
from collegium.recipe.recipe import Recipe
from collegium.report.card.public_recipe import public
from collegium.report.records import RunRecord


MOST = 12
"""Differences that are listed."""

_TARGET = ("kind", "model", "revision", "adapter", "path", "domains", "target_temperature", "alignment")
"""Keys of a teacher that decide its part of the common target."""


def other_text(run: RunRecord, first: RunRecord) -> str | None:
    """The reason why losses of two runs cannot be compared; None if they can."""
    lengths = [each.evaluation.held_out.context_length for each in (run, first)]
    if lengths[0] != lengths[1]:
        return f"contexts of {lengths[0]:,} tokens, not of {lengths[1]:,}"
    ours, theirs = ({name: d.tokens for name, d in each.evaluation.documents.items()} for each in (run, first))
    if not ours or not theirs:
        return "its single documents are not known"
    if ours == theirs:
        return None
    tokenizers = [_tokenizer(each.recipe) for each in (run, first)]
    if tokenizers[0] != tokenizers[1]:
        return f"another tokenizer: that of {tokenizers[0]}, not of {tokenizers[1]}"
    return "other held-out text"


def other_target(run: RunRecord, first: RunRecord) -> str | None:
    """The reason why KLs to the common target cannot be compared; None if they can."""
    for each in (run, first):
        if each.evaluation.mean.kl_common is None:
            return f"{each.name} was measured without teachers, or against draws"
    if reason := other_text(run, first):
        return reason
    ours, theirs = (_targets(each.recipe) for each in (run, first))
    if ours.keys() != theirs.keys():
        return "other teachers"
    changed = {key for name in ours for key in _TARGET if ours[name].get(key) != theirs[name].get(key)}
    if changed == {"target_temperature"}:
        return "teachers at other temperatures (target_temperature)"
    return f"other teachers ({', '.join(sorted(changed))})" if changed else None


def recipe_differences(run: RunRecord, first: RunRecord) -> str:
    """Keys that decide a result and are not the same, with both values."""
    found = content_differences(*(public(each.recipe.deciding) for each in (run, first)))
    more = f"; and {len(found) - MOST} more" if len(found) > MOST else ""
    listed = "; ".join(found[:MOST])
    if not found:
        return f"The recipe of {run.name} decides the same as that of {first.name}."
    return f"Recipe of {run.name}, and of {first.name}: {listed}{more}."


def reasons(run: RunRecord, first: RunRecord) -> Iterator[str]:
    """Columns that are left out of a run's row, each with its reason."""
    text = other_text(run, first)
    if text:
        yield f"{run.name}: perplexities and the difference in nats are left out: {text}."
    target = other_target(run, first)
    if target:
        yield f"{run.name}: the KL to the common target is left out: {target}."


def _tokenizer(recipe: Recipe) -> str:
    return str(public({"tokenizer": recipe.student.tokenizer or recipe.student.model})["tokenizer"])


def _targets(recipe: Recipe) -> dict[str, Mapping[str, Any]]:
    return {teacher.name: teacher.model_dump(mode="json") for teacher in recipe.teachers}
