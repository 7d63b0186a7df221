"""Recipes as YAML files: read with overrides, written resolved, with errors that say how to fix them.

YAML 1.2 by a strict loader: `1e-4` is a number, `no` is text, a key given twice is an error. All
mistakes of a file are reported at once, one line each: the file, the key, what was given and what is
accepted, with the nearest known key for a misspelt one.
"""

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError
from ruamel.yaml import YAML

from collegium.base.digests import verify_text
from collegium.base.errors import RecipeError, one_line
from collegium.base.suggestion import did_you_mean
from collegium.recipe.foreign_names import known_elsewhere
from collegium.recipe.recipe import Recipe
from collegium.recipe.sections.base import Section


MAX_RECIPE_BYTES = 100_000
MAX_VALUES = 20_000
"""Keys and values of a recipe, each use of an anchor counted."""

MAX_DEPTH = 50
_DEEP = re.compile(rf"(?:[\[{{]\s*){{{MAX_DEPTH + 1}}}")  # for which the loader takes seconds


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and validate a recipe.

    Args:
        path: YAML file.
        overrides: `dotted.key=value` pairs; the value is YAML.

    Raises:
        RecipeError: with one line for each mistake.
    """
    content = read_mapping(path)
    for override in overrides:
        _apply_override(content, override)
    _require_plain(content, path)
    return validated(content, path)


def with_overrides(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """A recipe with overrides, as the command line takes them.

    Raises:
        RecipeError: with one line for each mistake.
    """
    content = recipe.model_dump(mode="json")
    for override in overrides:
        _apply_override(content, override)
    return validated(content, "the recipe")


def load_run_recipe(path: Path) -> Recipe:
    """Read the recipe that a run left in its folder, which must be as it was written.

    Raises:
        DataError: it is damaged, or was edited.
        RecipeError: this version does not read it.
    """
    verify_text(path)
    return load_recipe(path)


def parse_recipe(text: str, path: Path) -> Recipe:
    """Validate a recipe that was read already.

    Raises:
        RecipeError: with one line for each mistake.
    """
    return validated(_parse_mapping(text, path), path)


def validated(content: dict[str, Any], place: Path | str) -> Recipe:
    """Validate the content of a recipe.

    Args:
        content: As it was read.
        place: File or what else it is from, for messages.

    Raises:
        RecipeError: with one line for each mistake.
    """
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        lines = [_describe(issue, content) for issue in _root_causes(error)]
        raise RecipeError("\n".join(f"{place}: {line}" for line in lines)) from None


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML, defaults included."""
    return dump_mapping(recipe.model_dump(mode="json"))


def dump_mapping(content: Mapping[str, Any]) -> str:
    """A recipe, or part of one, as YAML."""
    stream = io.StringIO()
    _yaml().dump(content, stream)
    return stream.getvalue()


def differences(one: Recipe, other: Recipe) -> list[str]:
    """Keys that decide the result and differ, each as `key: value of one, value of other`."""
    return content_differences(one.deciding, other.deciding)


def content_differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Keys of two recipes' content that differ, likewise."""
    mine = _leaves(one)
    theirs = _leaves(other)
    return [
        f"{key}: {mine.get(key, 'absent')!r}, {theirs.get(key, 'absent')!r}"
        for key in {**mine, **theirs}
        if mine.get(key, "absent") != theirs.get(key, "absent")
    ]


def _leaves(content: Any, prefix: str = "") -> dict[str, Any]:
    items: Any = ()
    if isinstance(content, Mapping):
        items = content.items()
    elif isinstance(content, list):
        items = enumerate(content)
    if not items:
        return {prefix.removesuffix("."): content}
    return {key: leaf for name, value in items for key, leaf in _leaves(value, f"{prefix}{name}.").items()}


def _root_causes(error: ValidationError) -> list[Any]:
    """Without the complaint that a list is too short because its items were refused."""
    issues = error.errors()
    places = [issue["loc"] for issue in issues]
    return [
        issue
        for issue in issues
        if issue["type"] != "too_short"
        or not any(
            len(place) > len(issue["loc"]) and place[: len(issue["loc"])] == issue["loc"] for place in places
        )
    ]


def read_mapping(path: Path) -> dict[str, Any]:
    """A YAML file as it is, not validated.

    Raises:
        RecipeError: it cannot be read or is not a mapping.
    """
    try:
        with path.open("rb") as file:  # a pipe has no size
            content = file.read(MAX_RECIPE_BYTES + 1)
        if len(content) > MAX_RECIPE_BYTES:
            raise RecipeError(f"{path}: over {MAX_RECIPE_BYTES:,} bytes; a recipe is a short YAML file")
        text = content.decode()
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}; give the path of a YAML recipe") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not valid YAML: {one_line(error, 300)}") from None
    return _parse_mapping(text, path)


def _parse_mapping(text: str, path: Path) -> dict[str, Any]:
    if _DEEP.search(text):
        raise RecipeError(f"{path}: nested in over {MAX_DEPTH} others; a recipe is flat")
    try:
        content = _yaml().load(text)
    except Exception as error:  # of dates, numbers of thousands of digits and keys the loader raises anything
        raise RecipeError(f"{path}: not valid YAML: {one_line(error, 300)}") from None
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: holds {type(content).__name__}, not a mapping with keys such as `student:`")
    _require_plain(content, path)
    return content


def _require_plain(content: Any, place: Path | str) -> None:
    """See that anchors, depth and numbers stay within what a recipe may need, before anything copies them.

    Raises:
        RecipeError: they do not.
    """
    values = 0
    left: list[tuple[Any, str, int]] = [(content, "", 0)]
    while left:
        value, key, depth = left.pop()
        values += 1
        if values > MAX_VALUES:
            raise RecipeError(f"{place}: over {MAX_VALUES:,} values, anchors counted as often as they are used")
        if depth > MAX_DEPTH:
            raise RecipeError(f"{place}: {key[:100]}: nested in over {MAX_DEPTH} others; a recipe is flat")
        if isinstance(value, int) and value.bit_length() > 63:
            digits = int(value.bit_length() * 0.30103)
            raise RecipeError(
                f"{place}: {key or 'recipe'}: a whole number of about {digits:,} digits; none is so large"
            )
        if isinstance(value, dict):
            left += [(item, f"{key}.{name}".lstrip("."), depth + 1) for name, item in reversed(value.items())]
        elif isinstance(value, list | tuple | set):
            left += [(item, f"{key}.{i}", depth + 1) for i, item in enumerate(value)]


def _yaml() -> YAML:
    yaml = YAML(typ="safe", pure=True)  # YAML 1.2: 1e-4 is a number, `no` is text, duplicate keys fail
    yaml.default_flow_style = False
    return yaml


def _apply_override(content: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"{override!r} is not an override; write dotted.key=value, e.g. training.max_steps=100")
    *parents, last = key.split(".")
    place: Any = content
    for part in parents:
        if isinstance(place, list):
            place = place[_list_index(place, part, key)]
        elif isinstance(place, dict):
            if not isinstance(place.get(part), dict | list):
                place[part] = {}
            place = place[part]
        else:
            raise RecipeError(f"{key}: {part!r} cannot be looked up in {place!r}")
    value = _parse_value(text, key)
    if isinstance(place, list):
        place[_list_index(place, last, key)] = value
    else:
        place[last] = value


def _parse_value(text: str, key: str) -> Any:
    try:
        return _yaml().load(text)
    except Exception as error:
        raise RecipeError(f"{key}: {text[:100]!r} is not a YAML value: {one_line(error)}") from None


def _list_index(items: list[Any], part: str, key: str) -> int:
    if part.isdigit() and int(part) < len(items):
        return int(part)
    raise RecipeError(f"{key}: {part!r} is not an item of a list of {len(items)}; items count from 0")


def _describe(issue: Any, content: Mapping[str, Any]) -> str:
    location = _without_tags(issue["loc"], unknown_key=issue["type"] == "extra_forbidden")
    key = ".".join(str(part) for part in location) or "recipe"
    given = issue["input"]
    if issue["type"] == "extra_forbidden":
        known = _known_keys(location[:-1], content)
        return f"{key}: unknown key; {known_elsewhere(location) or did_you_mean(location[-1], known)}"
    if issue["type"] == "missing":
        return f"{key}: missing; it has no default and must be given"
    message = str(issue["msg"]).removeprefix("Value error, ")
    if isinstance(given, Mapping) or issue["type"] == "value_error":
        return f"{key}: {message}"
    shown = repr(given)
    return f"{key}: {message}, got {shown if len(shown) <= 200 else shown[:200] + '...'} ({type(given).__name__})"


def _without_tags(location: Sequence[Any], *, unknown_key: bool) -> list[Any]:
    """The place in the recipe: pydantic also names which of several sections it took, which is in no recipe."""
    keys: list[Any] = []
    sections: list[type[Section]] = [Recipe]
    for place, part in enumerate(location):
        fields = [section.model_fields[part] for section in sections if part in section.model_fields]
        if fields:
            sections = [section for field in fields for section in _sections_in(field.annotation)]
        elif isinstance(part, str) and sections and not (unknown_key and place == len(location) - 1):
            continue
        keys.append(part)
    return keys


def _known_keys(location: Sequence[Any], content: Mapping[str, Any]) -> list[str]:
    """Keys accepted at `location`; of the sections that may stand there, the one whose `kind` was given."""
    sections: list[type[Section]] = [Recipe]
    place: Any = content
    for part in location:
        place = _child(place, part)
        if not isinstance(part, int):
            sections = _sections_in(sections[0].model_fields[part].annotation)
        sections = [section for section in sections if _has_kind(section, place)] or sections
    return sorted(sections[0].model_fields)


def _has_kind(section: type[Section], place: Any) -> bool:
    kind = section.model_fields.get("kind")
    return kind is not None and isinstance(place, Mapping) and place.get("kind") in get_args(kind.annotation)


def _child(place: Any, part: Any) -> Any:
    try:
        return place[part]
    except (KeyError, IndexError, TypeError):
        return None


def _sections_in(annotation: Any) -> list[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections_in(part)]
