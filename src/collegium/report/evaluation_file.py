"""The one writer and the one reader of `evaluation.json`."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from collegium.base.digests import DIGEST_KEY, sealed, unsealed
from collegium.base.durable import write_text
from collegium.base.errors import DataError, one_line
from collegium.base.finite import null_where_unknown
from collegium.report.evaluation import SCHEMA_VERSION, Cost, Evaluation


NAME = "evaluation.json"

ON_ONE_LINE = ("documents", "passages", "curves")
"""Long lists, for programs; everything else is laid out to be read."""


def save_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """Write `evaluation.json`, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / NAME, evaluation_text(evaluation))


def evaluation_text(evaluation: Evaluation) -> str:
    """The file's content."""
    lines = (
        f"{json.dumps(name)}: {json.dumps(section, indent=None if name in ON_ONE_LINE else 1)}"
        for name, section in as_content(evaluation).items()
    )
    return "{\n" + ",\n".join(lines) + "\n}\n"


def as_content(evaluation: Evaluation) -> dict[str, Any]:
    """Plain data that JSON can hold, without what was not measured, and with its own digest at the end."""
    content: dict[str, Any] = _adapter().dump_python(evaluation, by_alias=True, exclude_defaults=True)
    known = {key: null_where_unknown(part) for key, part in content.items()}
    return sealed({"schema_version": evaluation.schema_version, **known})


def read_evaluation(folder: Path) -> Evaluation:
    """Read the evaluation of a run.

    Raises:
        DataError: there is none, it was written in another shape, or it is damaged.
    """
    path = folder / NAME
    again = f"measure it again: collegium evaluate {folder}"
    if not path.exists():
        raise DataError(f"{folder}: holds no {NAME}; give the folder of a finished run, or {again}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: is damaged, it cannot be read ({one_line(error)}); {again}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: is damaged, it holds no mapping; {again}")
    version = content.get("schema_version")
    if version != SCHEMA_VERSION:
        written = "an earlier version of collegium, without a schema_version"
        if version is not None:
            written = f"another version of collegium, with schema_version {version}"
        raise DataError(f"{path}: was written by {written}; this one reads {SCHEMA_VERSION}: {again}")
    try:
        content = unsealed(content)
    except ValueError as error:
        raise DataError(f"{path}: is damaged, or was edited ({error}); {again}") from None
    try:
        evaluation = evaluation_of(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise DataError(f"{path}: is damaged ({place}: {first['msg']}); {again}") from error
    if not evaluation.domains:
        raise DataError(f"{path}: measures nothing; {again}")
    return evaluation


def evaluation_of(content: Mapping[str, Any]) -> Evaluation:
    """An evaluation from what `as_content` makes of it.

    Raises:
        ValidationError: a key is missing, unknown, or holds something else.
    """
    return _adapter().validate_python({key: value for key, value in content.items() if key != DIGEST_KEY})


def is_of_this_version(folder: Path) -> bool:
    """True if the evaluation in a folder has the shape that `read_evaluation` reads."""
    return _content(folder).get("schema_version") == SCHEMA_VERSION


def stored_cost(folder: Path) -> Cost | None:
    """The cost in an evaluation of any version, which no measurement can say again; None if there is none."""
    try:
        return TypeAdapter(Cost).validate_python(_content(folder).get("cost"))
    except ValidationError:
        return None


def stored_lineage(folder: Path) -> Mapping[str, Any] | None:
    """The lineage in an evaluation of any version; None if there is none."""
    lineage = _content(folder).get("lineage")
    return lineage if isinstance(lineage, dict) else None


def _content(folder: Path) -> dict[str, Any]:
    """Whatever is there; empty where nothing can be read."""
    try:
        content = json.loads((folder / NAME).read_text(encoding="utf-8"))
        if isinstance(content, dict) and content.get("schema_version") == SCHEMA_VERSION:
            content = unsealed(content)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


@cache
def _adapter() -> TypeAdapter[Evaluation]:
    return TypeAdapter(Evaluation)
