"""The token view: passages of held-out text, each token with what everybody would have said in its place."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from collegium.base.visible import visible, visible_token
from collegium.report import samples
from collegium.report.records import RunRecord
from collegium.report.samples import Passage
from collegium.report.series_style import colour_class, teacher_name


CERTAIN = (3.0, 1.5, 0.5)
"""Entropies in nats below which a token is shaded stronger, a step each."""

CONFLICTS = (0.1, 0.35)
"""Conflicts in nats above which a token is underlined, and then with a solid line."""


@dataclass(frozen=True)
class Alternative:
    """A token that somebody finds probable there."""

    text: str
    probability: str


@dataclass(frozen=True)
class View:
    """Predictions of student, target or a teacher in one place."""

    name: str
    probability: str
    alternatives: Sequence[Alternative]
    colour: str = ""
    weight: str = ""
    entropy: str = ""


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
    for number, (domain, passage) in enumerate(run.evaluation.passages.items()):
        name = f"{prefix}p{number}"
        tokens = [_token(run, passage, place, f"{name}-{place}") for place in range(len(passage.text))]
        yield PassageView(name, visible(domain), visible(passage.lead), tokens)


def _token(run: RunRecord, passage: Passage, place: int, name: str) -> Token:
    text = passage.text[place]
    return Token(
        id=name,
        text=visible_token(text) + ("\n" if "\n" in text else ""),
        classes=" ".join(["tok", *_classes(run.teachers, passage, place)]),
        conflict=f"{passage.conflict[place]:.2f}",
        views=list(_views(run.teachers, passage, place)),
    )


def _classes(teachers: Sequence[str], passage: Passage, place: int) -> Iterator[str]:
    weights = {name: view.weight[place] for name, view in passage.teachers.items()}
    if any(weights.values()):
        first = max(weights, key=weights.__getitem__)
        entropy = passage.teachers[first].entropy[place]
        yield colour_class(teachers, first)
        yield f"s{sum(entropy is not None and entropy < bound for bound in CERTAIN)}"
    if steps := sum(passage.conflict[place] > bound for bound in CONFLICTS):
        yield f"c{steps}"
    best = passage.student.alternatives[place]
    if best and best[0][0] == passage.text[place]:
        yield "right"


def _views(teachers: Sequence[str], passage: Passage, place: int) -> Iterator[View]:
    yield _view("student", passage.student, place)
    if passage.target is not None:
        yield _view("target (fused)", passage.target, place)
    for name, view in passage.teachers.items():
        entropy = view.entropy[place]
        yield replace(
            _view(visible(teacher_name(name)), view, place),
            colour=colour_class(teachers, name),
            weight=f"{view.weight[place]:.0%}",
            entropy="absent" if entropy is None else f"{entropy:.2f}",
            probability="" if entropy is None else _percent(view.probability[place]),
        )


def _view(name: str, view: samples.View, place: int) -> View:
    return View(
        name=name,
        probability=_percent(view.probability[place]),
        alternatives=[Alternative(visible_token(text), _percent(p)) for text, p in view.alternatives[place]],
    )


def _percent(probability: float) -> str:
    return f"{probability:.0%}" if probability >= 0.1 else f"{probability:.1%}"
