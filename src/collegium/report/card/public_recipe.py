"""A recipe as others may read it: what it says, without folders of this machine and without secrets in URLs.

A path that begins at the root or at home says who ran it and where; only its last name is kept. So a card's
recipe may name folders that its reader does not have, but reads as a recipe.
"""

import re
from collections.abc import Mapping
from typing import Any

from collegium.report.card.on_disk import shown_path


PATHS = {"adapter", "dataset", "directory", "model", "output_dir", "path", "run", "tokenizer"}
"""Keys of a recipe that may hold a path or URL."""

_URL = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*://)(?P<rest>.*)", re.IGNORECASE | re.DOTALL)
_OF_MACHINE = re.compile(r"[/~\\]|\.\.|[A-Za-z]:[/\\]")


def public(content: Any, key: str = "") -> Any:
    """The same content with paths of this machine shortened."""
    if isinstance(content, Mapping):
        return {name: public(value, str(name)) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [public(value, key) for value in content]
    return public_path(content) if isinstance(content, str) and key in PATHS else content


def public_path(text: str) -> str:
    """A path that begins at the root, at home or above by its last name; a URL without credentials."""
    url = _URL.fullmatch(text)
    if url is not None:
        place = url["rest"].split("?")[0].split("#")[0]
        return url["scheme"] + place.rpartition("@")[2]
    return shown_path(text) if _OF_MACHINE.match(text) else text
