"""Advice that can be typed: overrides as the command line takes them."""

import shlex


def typed(*overrides: str) -> str:
    """Overrides in backticks, quoted where a shell needs it, such as `seed=1 'objective.weighting={...}'`."""
    return f"`{' '.join(map(shlex.quote, overrides))}`"
