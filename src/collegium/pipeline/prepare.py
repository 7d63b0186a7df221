"""`collegium prepare`: text to packed blocks on disk, which the other commands do first where it is missing."""

from typing import Any

from collegium.assembly.run import Run
from collegium.recipe.recipe import Recipe


def prepare(recipe: Recipe) -> dict[str, Any]:
    """Turn text into packed blocks on disk, at once if they are there; says where they are and how many."""
    text = Run(recipe).text
    return {
        "directory": str(text.directory),
        "fingerprint": text.fingerprint,
        "training_blocks": len(text.train),
        "held_out_blocks": {name: len(blocks) for name, blocks in text.held_out.items()},
    }
