"""Terms that licences set for a student: which agree, and which bind whoever passes it on.

This is a table of well-known terms, not legal advice: it says what must be read before a student is passed
on. A licence that is not in it is reported as unknown rather than taken for harmless.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal


NOT_STATED = "not stated"

PERMISSIVE = frozenset(
    {
        *("apache-2.0", "mit", "mit-0", "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "isc"),
        *("0bsd", "unlicense", "wtfpl", "cc0-1.0", "cc-by", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0"),
        *("odc-by", "pddl", "cdla-permissive-1.0", "cdla-permissive-2.0", "afl-3.0", "artistic-2.0", "bsl-1.0"),
        *("ecl-2.0", "zlib", "ms-pl", "ncsa", "postgresql", "public-domain"),
    }
)
"""Ask for attribution at most, by the hub's names."""

ALIASES: Mapping[str, str] = {
    "apache-2": "apache-2.0",
    "apache-license-2.0": "apache-2.0",
    "apache-license,-version-2.0": "apache-2.0",
    "mit-license": "mit",
    "odc-by-1.0": "odc-by",
    "odc-attribution": "odc-by",
    "cc0": "cc0-1.0",
    "gemma-terms-of-use": "gemma",
    "cdla-sharing": "cdla-sharing-1.0",
}

RESTRICTIVE: Sequence[tuple[str, str]] = (
    (
        r"gemma",
        "under the Gemma Terms of Use a student distilled from the model is a Model Derivative: whoever passes it "
        "on must pass on these terms and their use restrictions with it",
    ),
    (
        r"llama.*",
        "the Llama community licence binds what its models or their outputs improved: pass on the licence and the "
        "notice, begin the student's name with Llama, and see whether its version lets outputs train other models",
    ),
    (r".*(openrail|rail).*", "its use restrictions must be passed on with every derivative"),
    (r".*-nd(-.*)?", "it allows no derivatives to be passed on"),
    (r".*-nc(-.*)?|.*non-?commercial.*", "it allows no commercial use, of derivatives neither"),
    (r"(.*-sa(-.*)?|cdla-sharing.*|odbl.*)", "derivatives must be shared under the same terms"),
    (r"(a|l)?gpl.*|mpl.*|eupl.*|osl.*|epl.*|cecill.*", "derivatives must be shared under the same terms"),
    (r".*research.*|apple-amlr", "it allows research only"),
)
"""Patterns of licence names, and what binds a student; the first that matches is reported."""

Verdict = Literal["permissive", "restricts", "unknown", "not stated"]


@dataclass(frozen=True)
class Finding:
    """The terms of a licence, as far as they concern a student.

    Attributes:
        verdict: In one word.
        reason: In a sentence, for people; empty where nothing is asked but attribution.
    """

    verdict: Verdict
    reason: str


def normalized(licence: str) -> str:
    """A licence by the hub's name for it, as far as it is known; else in small letters with hyphens."""
    name = re.sub(r"[\s_]+", "-", licence.strip().casefold())
    return ALIASES.get(name, name)


def judge(licence: str | None) -> Finding:
    """Find the terms for whoever passes on a student; of several licences, those of the first that sets some."""
    if licence is None:
        return Finding("not stated", "its licence is not stated, so nothing says that a student may be passed on")
    findings = [_judge_one(normalized(part)) for part in re.split(r",\s+(?!version)|\s+and\s+", licence)]
    return next((found for found in findings if found.verdict != "permissive"), findings[0])


def _judge_one(name: str) -> Finding:
    if name in PERMISSIVE:
        return Finding("permissive", "")
    for pattern, reason in RESTRICTIVE:
        if re.fullmatch(pattern, name):
            return Finding("restricts", reason)
    return Finding("unknown", "its terms are not known to this program: read them before the student is passed on")


@dataclass(frozen=True)
class Licensed:
    """Something that a student was made from.

    Attributes:
        what: `teacher`, `adapter of teacher`, `student's first weights` or `text`.
        name: Its name in the recipe.
        licence: As stated, if it is.
    """

    what: str
    name: str
    licence: str | None

    @property
    def finding(self) -> Finding:
        """The terms of its licence."""
        return judge(self.licence)


def models_in(lineage: Mapping[str, Any]) -> list[Licensed]:
    """Every model whose weights or words are in the student, those of earlier runs too."""
    found = []
    for teacher in lineage["teachers"]:
        found.append(Licensed("teacher", teacher["name"], teacher["licence"]))
        if teacher["adapter"] is not None:
            found.append(Licensed("adapter of teacher", teacher["name"], teacher["adapter"]["licence"]))
    student = lineage["student"]
    if student["kind"] != "config":
        found.append(Licensed("student's first weights", student["model"], student["licence"]))
    earlier = student.get("earlier")
    return found if earlier is None else [*found, *models_in(earlier)]


def texts_in(lineage: Mapping[str, Any]) -> list[Licensed]:
    """Every source of text, those of earlier runs too."""
    found = [Licensed("text", source["name"], source["licence"]) for source in lineage["data"]]
    earlier = lineage["student"].get("earlier")
    return found if earlier is None else [*found, *texts_in(earlier)]


def student_licence(lineage: Mapping[str, Any]) -> tuple[str | None, list[str]]:
    """The licence of a student as its models' licences allow it to be said, and all of theirs.

    One that all of them state is the student's; where they differ, or some state none, it is `other`; None where
    none states any, or there are no models.
    """
    stated = [item.licence for item in models_in(lineage)]
    names = sorted({NOT_STATED if licence is None else normalized(licence) for licence in stated})
    if names in ([], [NOT_STATED]):
        return None, names
    return (names[0] if len(names) == 1 else "other"), names


def obstacles(lineage: Mapping[str, Any]) -> list[str]:
    """Why a student should not be made public before someone has read the licences; empty if nothing is seen."""
    lines = [
        f"{item.what} {item.name!r} ({item.licence or NOT_STATED}): {item.finding.reason}"
        for item in models_in(lineage)
        if item.finding.verdict != "permissive"
    ]
    return list(dict.fromkeys(lines))  # an earlier run may have had the same teacher
