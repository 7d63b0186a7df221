"""Numbers in place of every temperature that says `fit`.

They follow from the teacher, the text and the recipe, and are kept under these in the cache, so that
`collegium cache`, `preflight` and `train` agree: lists are made at these very numbers. A run keeps its own
in `temperatures.json`, and reads them when it goes on. Teachers are loaded one at a time to be fitted, and
once more to teach.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from collegium.assembly.cache import domain_blocks, identify, open_cache
from collegium.assembly.ingredients import Ingredients, own_ingredients
from collegium.assembly.models import load_teachers, logger
from collegium.base.digest import json_digest
from collegium.base.durable import write_text
from collegium.base.errors import DataError, RecipeError
from collegium.base.references import cache_dir
from collegium.cache.folder import Folder
from collegium.cache.manifest import Manifest, read_manifest
from collegium.data.blocks import PackedBlocks
from collegium.evaluation.calibration import calibrate
from collegium.losses.calibration import FittedTemperature
from collegium.recipe.recipe import Recipe
from collegium.recipe.sections.models import CachedTeacherSection, LocalTeacherSection, TeachingSection
from collegium.signals.contracts import Teacher
from collegium.training.objective import default_chunk_size


FILE_NAME = "temperatures.json"

Temperatures = Mapping[str, Mapping[str, FittedTemperature]]
"""Of each teacher that has some to be fitted: by key of the recipe."""

Section = LocalTeacherSection | CachedTeacherSection


def fit_recipe(
    recipe: Recipe, ingredients: Ingredients, *, device: torch.device, run_dir: Path | None = None
) -> tuple[Recipe, Temperatures]:
    """The recipe with numbers for temperatures, and how those came about.

    The first rank fits, reads or has kept them, and tells the others.

    Args:
        recipe: The recipe.
        ingredients: Tokenizer and text.
        device: Where teachers run.
        run_dir: Where `temperatures.json` is read from, and written.

    Raises:
        RecipeError: a cache of lists cannot be fitted.
        DataError: `temperatures.json` or a cache is damaged.
        TeacherError: a teacher cannot be loaded, or is absent from all text.
    """
    sections = [section for section in recipe.teachers if section.fitted]
    if not sections:
        return recipe, {}
    answer: list[Any] = [None]
    if PartialState().is_main_process:
        path = None if run_dir is None else run_dir / FILE_NAME
        known = _read(path)
        answer = [{s.name: known.get(s.name) or _kept(recipe, s, ingredients, device) for s in sections}]
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, answer[0])
    broadcast_object_list(answer)
    temperatures: Temperatures = answer[0]
    teachers = tuple(_with(section, temperatures.get(section.name, {})) for section in recipe.teachers)
    return recipe.model_copy(update={"teachers": teachers}), temperatures


def _with(section: Section, fitted: Mapping[str, FittedTemperature]) -> Section:
    numbers = {key: fit.temperature for key, fit in fitted.items()}
    return section.model_copy(update=numbers | ({"target_domain": None} if fitted else {}))


def _kept(
    recipe: Recipe, section: Section, ingredients: Ingredients, device: torch.device
) -> Mapping[str, FittedTemperature]:
    """From the cache if they were fitted before."""
    domains_of = fitted_on(section, ingredients)
    content = [
        _fingerprint(recipe, section, ingredients),
        ingredients.text.fingerprint,
        domains_of,
        recipe.calibration.blocks,
    ]
    key = json_digest(content, sort_keys=False)[:16]
    path = cache_dir() / "temperatures" / f"{section.name}-{key}.json"
    fitted = _read(path).get(section.name) or _of_lists(recipe, section, ingredients)
    if fitted is None:
        fitted = _fit(recipe, section, ingredients, domains_of, device)
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, {section.name: fitted})
    return fitted


def fitted_on(section: TeachingSection, ingredients: Ingredients) -> dict[str, list[str]]:
    """The domains on whose text each temperature is fitted."""
    own = list(section.domains or ingredients.domains)
    target = own if section.target_domain is None else [section.target_domain]
    return {key: own if key == "weight_temperature" else target for key in section.fitted}


def _fingerprint(recipe: Recipe, section: Section, ingredients: Ingredients) -> str:
    if isinstance(section, LocalTeacherSection):
        return identify(section, own_ingredients(recipe, section, ingredients))[1]
    return read_manifest(Folder.at(section.path)).identity


def _fit(
    recipe: Recipe,
    section: Section,
    ingredients: Ingredients,
    domains_of: Mapping[str, Sequence[str]],
    device: torch.device,
) -> dict[str, FittedTemperature]:
    fitted = calibrate(
        _raw_teacher(recipe, section, ingredients, device),
        calibration_blocks(ingredients, recipe.calibration.blocks),
        domains_of,
        ingredients.collator,
        device=device,
        batch_size=recipe.cache.batch_size,
        chunk_size=default_chunk_size(ingredients.vocab_size, device),
    )
    for key, fit in fitted.items():
        if fit.at_bound:
            logger.warning(
                "teacher %s: the best %s is beyond %.3g, the last that is tried; mean loss minus mean entropy is "
                "still %+.2f nats: look at the teacher, or give a number",
                section.name,
                key,
                fit.temperature,
                fit.gap,
            )
    return fitted


def _raw_teacher(recipe: Recipe, section: Section, ingredients: Ingredients, device: torch.device) -> Teacher:
    """The teacher at temperature 1; from its cache if that holds hidden states."""
    raw = section.at_one
    if isinstance(raw, CachedTeacherSection):
        if (settings := read_manifest(Folder.at(raw.path)).settings).mode != "hidden_states":
            raise RecipeError(
                f"teacher {section.name!r}: its cache holds lists, which serve only the temperatures they were "
                f"made at: give weight_temperature {settings.weight_temperature!r} and target_temperature "
                f"{settings.target_temperature!r} instead of `fit`"
            )
        return open_cache(recipe, raw, ingredients).teacher
    if raw.cached and recipe.cache.mode == "hidden_states":
        return open_cache(recipe, raw, ingredients).teacher
    return load_teachers([raw], ingredients.tokenizer, device=device)[0]


def _of_lists(recipe: Recipe, section: Section, ingredients: Ingredients) -> dict[str, FittedTemperature] | None:
    """What a cache of lists in the recipe's own folder was made at, where nothing else is known of the fit."""
    is_listed = (
        isinstance(section, LocalTeacherSection) and section.cached and recipe.cache.mode != "hidden_states"
    )
    if not is_listed or recipe.cache.directory is None:
        return None
    assert isinstance(section, LocalTeacherSection), "only these are cached by us"
    try:
        manifest = read_manifest(Folder.at(f"{recipe.cache.directory.rstrip('/')}/{section.name}"))
    except DataError:
        return None
    own = own_ingredients(recipe, section, ingredients)
    same = manifest.teacher.fingerprint == identify(section, own)[1]
    if not same or manifest.text != own.text.fingerprint:
        return None
    unknown = (math.nan,) * 4
    return {key: FittedTemperature(_made_at(manifest, key), *unknown, positions=0) for key in section.fitted}


def _made_at(manifest: Manifest, key: str) -> float:
    return float(getattr(manifest.settings, key))


def calibration_blocks(ingredients: Ingredients, per_domain: int) -> dict[str, PackedBlocks]:
    """Training blocks of each domain, evenly spaced."""
    return {domain: domain_blocks(ingredients, domain).take(per_domain) for domain in ingredients.domains}


def _read(path: Path | None) -> Temperatures:
    if path is None or not path.exists():
        return {}
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        return {name: {key: FittedTemperature(**fit) for key, fit in fits.items()} for name, fits in tree.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: holds no temperatures ({error}); delete it, and they are fitted anew") from error


def _from_json(fit: Mapping[str, Any]) -> FittedTemperature:
    known: dict[str, Any] = {name: math.nan if value is None else value for name, value in fit.items()}
    return FittedTemperature(**known)


def to_json(fit: FittedTemperature) -> dict[str, Any]:
    """Its figures, null where one is not known."""
    return {name: None if value != value else value for name, value in asdict(fit).items()}


def _write(path: Path, temperatures: Temperatures) -> None:
    tree = {name: {key: to_json(fit) for key, fit in fits.items()} for name, fits in temperatures.items()}
    write_text(path, json.dumps(tree, indent=1))
