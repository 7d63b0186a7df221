"""The model card of a run's student: written when training ends, and again whenever the student is measured.

It is whole or as it was before. That it comes after `student/` does no harm: the folder says that a run is
finished, and a card that is missing is written by the next `collegium evaluate`.
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
