"""Steps and batches of a recipe against the length of its text, as far as files show it without being read.

A token is a byte at least, so plain files on this machine bound the number of blocks from above. What is
compressed, or on the hub, has no such bound, and what it holds is known once the text is prepared.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from collegium.base.errors import DataError, RecipeError
from collegium.base.references import find_files
from collegium.recipe.recipe import Recipe
from collegium.recipe.sections.sources import FileSourceSection, Source


PLAIN = (".txt", ".text", ".md", ".jsonl", ".json", ".csv", ".tsv")
"""Endings of files whose text takes no more bytes in memory than on disk."""

_MARKS = 3
"""Tokens for each byte at most: the byte, and BOS and EOS of a document of one byte."""


class Complaint(NamedTuple):
    """What does not go with the length of the text.

    Attributes:
        key: Of the recipe.
        found: What was found.
        fix: What to do about it.
        is_error: False if the run would go on.
    """

    key: str
    found: str
    fix: str
    is_error: bool


def most_blocks(recipe: Recipe) -> int | None:
    """Blocks of the training text at most; None if files do not show it."""
    tokens = [_most_tokens(source) for source in recipe.data.sources]
    if None in tokens:
        return None
    # Each source may end in a block that is not full.
    return sum(count // recipe.data.block_size + 1 for count in tokens if count is not None)


def _most_tokens(source: Source) -> int | None:
    if not isinstance(source, FileSourceSection) or source.prompt_column is not None:
        return source.max_tokens
    try:
        files = [Path(file) for file in find_files(source.path)]
        sizes = [file.stat().st_size for file in files]
    except (DataError, OSError):  # which is said elsewhere
        return source.max_tokens
    if not all(file.suffix.lower() in PLAIN for file in files):
        return source.max_tokens
    tokens = _MARKS * sum(sizes)
    return tokens if source.max_tokens is None else min(tokens, source.max_tokens)


def complaints(recipe: Recipe, blocks: int | None, *, is_bound: bool) -> Iterator[Complaint]:
    """Warm-up and batch size that do not go with so many blocks of text.

    Args:
        recipe: The recipe.
        blocks: Blocks of the training text; None if that is not known.
        is_bound: They may be fewer.
    """
    training = recipe.training
    most = "at most " if is_bound else ""
    steps = training.max_steps
    if steps is None and blocks is not None and training.num_epochs is not None:
        steps = math.ceil(training.num_epochs * blocks / (training.batch_size * training.gradient_accumulation))
    if steps is not None and training.warmup_steps >= steps:
        found = (
            f"{training.warmup_steps:,} steps of warm-up in a run of {most if training.max_steps is None else ''}"
        )
        fix = f"the learning rate never comes down from its peak: give fewer than {steps:,}"
        yield Complaint("training.warmup_steps", f"{found}{steps:,} steps", fix, is_error=False)
    if blocks is not None and training.batch_size > blocks:
        found = f"{training.batch_size:,} blocks in a batch, and the text has {most}{blocks:,}"
        yield Complaint("training.batch_size", found, f"give {blocks:,} or fewer, or more text", is_error=True)


def require_length(recipe: Recipe, blocks: int) -> list[str]:
    """See that a batch is no larger than the text; returns what is to be warned of.

    Raises:
        RecipeError: it is larger.
    """
    warnings = []
    for complaint in complaints(recipe, blocks, is_bound=False):
        sentence = f"{complaint.key}: {complaint.found}; {complaint.fix}"
        if complaint.is_error:
            raise RecipeError(sentence)
        warnings.append(sentence)
    return warnings
