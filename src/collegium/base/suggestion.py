"""The hint after a name that is not known: the nearest one that is, or all of them."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: object, known: Iterable[str], *, always_list: bool = False) -> str:
    """The end of an error's sentence: "did you mean `x`?", or "known are x, y" if nothing is near.

    Args:
        name: The name that was given.
        known: All names that are accepted.
        always_list: List them even where one is near: for names that are chosen from a list, not typed by heart.
    """
    names = list(known)
    listed = f"nown are {', '.join(names)}"
    close = difflib.get_close_matches(str(name), names, n=1)
    if not close:
        return f"k{listed}"
    question = f"did you mean `{close[0]}`?"
    return f"{question} K{listed}" if always_list else question
