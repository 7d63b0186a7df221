"""The token view: passages of held-out text, each token with what everybody would have said in its place."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from collegium.base.visible import visible, visible_token
from collegium.report.records import RunRecord
from collegium.report.series_style import colour_class


CERTAIN = (3.0, 1.5, 0.5)
"""Entropies in nats below which a token is shaded stronger, a step each."""

CONFLICTS = (0.1, 0.35)
"""Conflicts in nats above which a token is underlined, and then with a solid line."""


@dataclass(frozen=True)
class Alternative:
    """What somebody would have said."""

    text: str
    probability: str


@dataclass(frozen=True)
class View:
    """What student, target or a teacher says in one place."""

    name: str
    colour: str
    weight: str
    entropy: str
    probability: str
    alternatives: Sequence[Alternative]


@dataclass(frozen=True)
class Token:
    """A token of a passage; `classes` are those of the style sheet."""

    id: str
    text: str
    classes: str
    conflict: str
    views: Sequence[View]


@dataclass(frozen=True)
class PassageView:
    """A passage of one domain."""

    id: str
    domain: str
    lead: str
    tokens: Sequence[Token]


def passages(run: RunRecord, prefix: str) -> Iterator[PassageView]:
    """All passages of a run.

    Args:
        run: The run.
        prefix: Of ids, unique to the run.
    """
    for number, (domain, content) in enumerate((run.evaluation.get("passages") or {}).items()):
        name = f"{prefix}p{number}"
        tokens = [_token(run, content, place, f"{name}-{place}") for place in range(len(content["text"]))]
        yield PassageView(name, visible(domain), visible(content["lead"]), tokens)


def _token(run: RunRecord, content: Mapping[str, Any], place: int, name: str) -> Token:
    text = content["text"][place]
    return Token(
        id=name,
        text=visible_token(text) + ("\n" if "\n" in text else ""),
        classes=" ".join(["tok", *_classes(run.teachers, content, place)]),
        conflict=f"{content['conflict'][place]:.2f}",
        views=[_view(run.teachers, content, place, view) for view in content["probability"]],
    )


def _classes(teachers: Sequence[str], content: Mapping[str, Any], place: int) -> Iterator[str]:
    weights = {name: values[place] for name, values in content["weight"].items()}
    if any(weights.values()):
        first = max(weights, key=weights.__getitem__)
        entropy = content["entropy"][first][place]
        yield colour_class(teachers, first)
        yield f"s{sum(entropy is not None and entropy < bound for bound in CERTAIN)}"
    if steps := sum(content["conflict"][place] > bound for bound in CONFLICTS):
        yield f"c{steps}"
    said = content["alternatives"]["student"][place]
    if said and said[0][0] == content["text"][place]:
        yield "right"


def _view(teachers: Sequence[str], content: Mapping[str, Any], place: int, view: str) -> View:
    name = view.removeprefix("teacher/")
    is_teacher = name != view
    weight = content["weight"][name][place] if is_teacher else None
    entropy = content["entropy"][name][place] if is_teacher else None
    is_absent = is_teacher and entropy is None
    return View(
        name=visible(name) if is_teacher else {"target": "target (fused)"}.get(view, view),
        colour=colour_class(teachers, name) if is_teacher else "",
        weight="" if weight is None else f"{weight:.0%}",
        entropy="absent" if is_absent else "" if entropy is None else f"{entropy:.2f}",
        probability="" if is_absent else _percent(content["probability"][view][place]),
        alternatives=[
            Alternative(visible_token(text), _percent(p)) for text, p in content["alternatives"][view][place]
        ],
    )


def _percent(probability: float) -> str:
    return f"{probability:.0%}" if probability >= 0.1 else f"{probability:.1%}"
