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
from typing import TYPE_CHECKING, Any

from accelerate.utils import broadcast_object_list

from collegium.assembly.cache import domain_blocks, identify
from collegium.assembly.cached_teachers import open_cache
from collegium.assembly.corpus import Corpus
from collegium.assembly.local_teachers import load_teachers, logger
from collegium.assembly.process import process_state
from collegium.base.digest import json_digest
from collegium.base.digests import sealed, unsealed
from collegium.base.durable import write_text
from collegium.base.errors import DataError, RecipeError
from collegium.base.progress import Phase
from collegium.base.references import cache_dir
from collegium.cache.folder import Folder
from collegium.cache.manifest import Manifest, read_manifest
from collegium.data.blocks import PackedBlocks
from collegium.evaluation.calibration import calibrate
from collegium.losses.calibration import FittedTemperature
from collegium.recipe.recipe import Recipe
from collegium.recipe.sections.models import CachedTeacherSection, LocalTeacherSection, TeachingSection
from collegium.signals.contracts import Teacher
from collegium.training.chunk_size import default_chunk_size


if TYPE_CHECKING:
    from collegium.assembly.run import Run

FILE_NAME = "temperatures.json"

Temperatures = Mapping[str, Mapping[str, FittedTemperature]]
"""Fitted temperatures by teacher, and by key of the recipe."""

Section = LocalTeacherSection | CachedTeacherSection


def fit_recipe(run: "Run") -> tuple[Recipe, Temperatures]:
    """Put numbers in place of temperatures that say `fit`: the recipe with them, and how they came about.

    The first rank fits them, or reads them where they are kept, and sends them to the others. A run with a folder
    keeps its own in `temperatures.json` there.

    Raises:
        RecipeError: a cache of lists cannot be fitted.
        DataError: `temperatures.json` or a cache is damaged.
        TeacherError: a teacher cannot be loaded, or is absent from all text.
    """
    recipe = run.recipe
    sections = [section for section in recipe.teachers if section.fitted]
    if not sections:
        return recipe, {}
    run.make("text")  # on all ranks, before one of them goes on alone
    answer: list[Any] = [None]
    if process_state().is_main_process:
        path = None if run.folder is None else run.folder / FILE_NAME
        known = _read(path)
        with Phase("fitting temperatures"):
            answer = [{s.name: known.get(s.name) or _kept(run, s) for s in sections}]
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


def _kept(run: "Run", section: Section) -> Mapping[str, FittedTemperature]:
    """Read temperatures from the cache if they were fitted before; else fit them, and keep them there."""
    domains_of = fitted_on(section, run.domains)
    content = [_fingerprint(run, section), run.text.fingerprint, domains_of, run.recipe.calibration.blocks]
    key = json_digest(content, sort_keys=False)[:16]
    path = cache_dir() / "temperatures" / f"{section.name}-{key}.json"
    fitted = _read(path).get(section.name) or _of_lists(run, section)
    if fitted is None:
        fitted = _fit(run, section, domains_of)
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, {section.name: fitted})
    return fitted


def fitted_on(section: TeachingSection, domains: Sequence[str]) -> dict[str, list[str]]:
    """The domains on whose text each temperature is fitted."""
    own = list(section.domains or domains)
    target = own if section.target_domain is None else [section.target_domain]
    return {key: own if key == "weight_temperature" else target for key in section.fitted}


def _fingerprint(run: "Run", section: Section) -> str:
    if isinstance(section, LocalTeacherSection):
        return identify(section, run.corpus_of(section).tokenizer).whole
    return read_manifest(Folder.at(section.path)).identity


def _fit(run: "Run", section: Section, domains_of: Mapping[str, Sequence[str]]) -> dict[str, FittedTemperature]:
    fitted = calibrate(
        _raw_teacher(run, section),
        calibration_blocks(run.corpus, run.recipe.calibration.blocks),
        domains_of,
        run.collator,
        device=run.device,
        batch_size=run.recipe.cache.batch_size,
        chunk_size=default_chunk_size(run.vocab_size, run.device),
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


def _raw_teacher(run: "Run", section: Section) -> Teacher:
    """The teacher at temperature 1; from its cache if that holds hidden states."""
    raw = section.at_one
    if isinstance(raw, CachedTeacherSection):
        if (settings := read_manifest(Folder.at(raw.path)).settings).mode != "hidden_states":
            raise RecipeError(
                f"teacher {section.name!r}: its cache holds lists, which serve only the temperatures they were "
                f"made at: give weight_temperature {settings.weight_temperature!r} and target_temperature "
                f"{settings.target_temperature!r} instead of `fit`"
            )
        return open_cache(run, raw).teacher
    if raw.cached and run.recipe.cache.mode == "hidden_states":
        return open_cache(run, raw).teacher
    return load_teachers([raw], run.tokenizer, device=run.device, shape=run.block_shape)[0]


def _of_lists(run: "Run", section: Section) -> dict[str, FittedTemperature] | None:
    """Temperatures that a cache of lists in the recipe's own folder was made at, where no fit is known."""
    cache = run.recipe.cache
    is_listed = isinstance(section, LocalTeacherSection) and section.cached and cache.mode != "hidden_states"
    if not is_listed or cache.directory is None:
        return None
    assert isinstance(section, LocalTeacherSection), "only these are cached by us"
    try:
        manifest = read_manifest(Folder.at(f"{cache.directory.rstrip('/')}/{section.name}"))
    except DataError:
        return None
    own = run.corpus_of(section)
    now = identify(section, own.tokenizer)
    was = manifest.teacher
    same = was.fingerprint == now.fingerprint and was.settings in (None, now.settings)
    if not same or manifest.text != own.text.fingerprint:
        return None
    unknown = (math.nan,) * 4
    return {key: FittedTemperature(_made_at(manifest, key), *unknown, positions=0) for key in section.fitted}


def _made_at(manifest: Manifest, key: str) -> float:
    return float(getattr(manifest.settings, key))


def calibration_blocks(corpus: Corpus, per_domain: int) -> dict[str, PackedBlocks]:
    """Training blocks of each domain, evenly spaced."""
    return {domain: domain_blocks(corpus, domain).take(per_domain) for domain in corpus.domains}


def _read(path: Path | None) -> Temperatures:
    if path is None or not path.exists():
        return {}
    try:
        tree = unsealed(json.loads(path.read_text(encoding="utf-8")))
        return {name: {key: FittedTemperature(**fit) for key, fit in fits.items()} for name, fits in tree.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: holds no temperatures ({error}); delete it, and they are fitted again"
        ) from error


def _from_json(fit: Mapping[str, Any]) -> FittedTemperature:
    known: dict[str, Any] = {name: math.nan if value is None else value for name, value in fit.items()}
    return FittedTemperature(**known)


def to_json(fit: FittedTemperature) -> dict[str, Any]:
    """Its figures, null where one is not known."""
    return {name: None if value != value else value for name, value in asdict(fit).items()}


def _write(path: Path, temperatures: Temperatures) -> None:
    tree = {name: {key: to_json(fit) for key, fit in fits.items()} for name, fits in temperatures.items()}
    write_text(path, json.dumps(sealed(tree), indent=1))
