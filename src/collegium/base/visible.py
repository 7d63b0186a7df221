"""Text of models, data and file names, so that it can neither act nor hide.

Escaping for HTML is left to the template. What a browser would not show, or what would turn the text around it,
is shown as its code point: control characters, bidirectional controls, zero-width and other format characters,
lone surrogates, characters of private use and noncharacters.
"""

import unicodedata


_KEPT = frozenset("\n\t")
_HIDDEN = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))


def visible(text: object) -> str:
    """The text with everything in it made visible; line breaks and tabs stay."""
    return "".join(_shown(character) for character in str(text))


def visible_token(text: str) -> str:
    """A token as it stands in running text: line breaks and tabs are shown, and nothing is an empty box."""
    shown = visible(text).replace("\t", "⇥").replace("\n", "⏎")
    return shown or "∅"


def excerpt(content: str | bytes, limit: int = 120) -> str:
    """The beginning of some content in one line, for an error; bytes that are not UTF-8 are shown as numbers."""
    if isinstance(content, bytes):
        content = content[: 4 * limit].decode("utf-8", "backslashreplace")
    shown = visible(content[:limit]).replace("\t", "⇥").replace("\r", "").replace("\n", "⏎")
    return f"{shown}…" if len(content) > limit else shown


def _shown(character: str) -> str:
    if character in _KEPT or unicodedata.category(character) not in _HIDDEN:
        return character
    return f"⟨U+{ord(character):04X}⟩"
