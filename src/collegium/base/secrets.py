"""Credentials in URLs, paths and messages: found, so that none is printed and no recipe keeps one.

Shown are `***` in their place: user and password of a URL, values of parameters by the names that services give to
tokens, keys and signatures, and tokens that their services gave a shape of their own.
"""

import re


_HIDDEN = "***"
_NAMES = "token|key|secret|passw|pwd|sig|cred|auth|jwt|session"
_USER = re.compile(r"(?P<before>://)(?![^\s/:@]*:\d+(?:/|$))[^\s/@:\"']*:[^\s@\"']+(?=@)")
_ONLY_USER = re.compile(r"(?P<before>\bhttps?://)[^\s/@:\"']+(?=@)", re.IGNORECASE)
_PARAMETER = re.compile(
    rf"(?P<before>[?&;#][\w.%-]*(?:{_NAMES})[\w.%-]*=)[^&\s#\"'<>]*[^&\s#\"'<>:.,;]", re.IGNORECASE
)
_HEADER = re.compile(r"(?P<before>\b(?:authorization:?\s+\w+|bearer)\s+)[\w.~+/=-]{8,}", re.IGNORECASE)
_SHAPES = re.compile(
    r"(?P<before>\b)(?:hf_[A-Za-z0-9]{20,}|sk-[\w-]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|glpat-[\w-]{20,}|xox[abprs]-[\w-]{10,}"
    r"|(?:AKIA|ASIA)[0-9A-Z]{16}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]+)"
)
_ALL = (_USER, _ONLY_USER, _PARAMETER, _HEADER, _SHAPES)


def redacted(text: str) -> str:
    """The text with `***` for credentials."""
    for pattern in _ALL:
        text = pattern.sub(rf"\g<before>{_HIDDEN}", text)
    return text


def holds_credentials(reference: str) -> bool:
    """Tell whether a path or URL has credentials in it."""
    return redacted(reference) != reference
