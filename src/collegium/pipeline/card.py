"""The model card of a run's student: written when training ends, and again whenever the student is measured.

It is whole or as it was before. It comes after `student/`, which says that the training is finished, and before
`evaluation.json`, which says that the student was measured: so a run that was killed in between is measured again.
"""

from pathlib import Path

from collegium.base.digests import update_digest
from collegium.base.durable import write_text
from collegium.recipe.file import dump_mapping
from collegium.recipe.recipe import Recipe
from collegium.report.card.on_disk import CARD_NAME
from collegium.report.card.public_recipe import public
from collegium.report.card.render import render_card
from collegium.report.evaluation import Evaluation


def write_card(run_dir: Path, recipe: Recipe, evaluation: Evaluation) -> Path:
    """Write `student/README.md` of a finished run."""
    path = run_dir / "student" / CARD_NAME
    write_text(path, render_card(evaluation, recipe_text(recipe)))
    update_digest(path.parent, CARD_NAME)
    return path


def recipe_text(recipe: Recipe) -> str:
    """The recipe for others: what is not as usual, or all of it where a method filled something in."""
    content = recipe.model_dump(mode="json", exclude_defaults=recipe.method is None)
    return dump_mapping(public(content))
