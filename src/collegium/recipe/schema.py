"""The JSON schema of a recipe, for editors: names, types, bounds and the text under each field. No torch here.

It is pydantic's own, with what pydantic cannot know: where the name of a kind may stand for its section, and
which methods there are. What holds between fields is left to `collegium check`: a schema that said it all
would show editors nothing but alternatives.
"""

from collections.abc import Mapping
from typing import Any, get_args

from collegium.recipe.methods import METHODS
from collegium.recipe.recipe import MixingSection, Recipe
from collegium.recipe.sections.divergences import DivergenceSection
from collegium.recipe.sections.objective import WeightingSection


def recipe_schema() -> dict[str, Any]:
    """The schema of a whole recipe, unknown keys refused."""
    schema = Recipe.model_json_schema()
    sections = schema["$defs"]
    objective = sections["ObjectiveSection"]["properties"]
    data = sections["DataSection"]["properties"]
    divergences = get_args(get_args(DivergenceSection)[0])
    _or_name(objective, "divergence", [_kinds(section)[0] for section in divergences])
    _or_name(objective, "weighting", ["paper", *_kinds(WeightingSection)])
    _or_name(data, "mixing", _kinds(MixingSection))
    report_to = sections["TrainingSection"]["properties"]["report_to"]
    report_to["anyOf"] = [{"type": report_to.pop("type"), "items": report_to.pop("items")}, {"type": "string"}]
    # `method` may have said the kind.
    objective["divergence"]["anyOf"].append({"type": "object", "not": {"required": ["kind"]}})
    schema["properties"]["method"]["anyOf"] = [{"enum": list(METHODS)}, {"type": "null"}]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "collegium recipe"}


def _kinds(section: Any) -> list[str]:
    return list(get_args(section.model_fields["kind"].annotation))


def _or_name(properties: dict[str, Any], key: str, names: list[str]) -> None:
    """Let one of the names stand in place of a section."""
    given: Mapping[str, Any] = properties[key]
    outer = {name: given[name] for name in ("default", "description") if name in given}
    section = {name: value for name, value in given.items() if name not in outer}
    properties[key] = {**outer, "anyOf": [section, {"enum": names}]}
