"""Caches of teachers that are others by now, found by JSON alone, for `collegium check`. No torch here.

Weights are not read, so that a cache may be refused later for these; settings in config.json and
adapter_config.json are what people edit.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from collegium.base.differences import Difference, differences
from collegium.base.errors import DataError
from collegium.base.references import cache_dir, is_local
from collegium.models.settings import Settings, teacher_settings
from collegium.recipe.sections.models import LocalTeacherSection


class Stale(NamedTuple):
    """A cache of a teacher as it was.

    Attributes:
        found: What differs, with both values.
        fix: What to do about it.
        stops: Whether a run would be refused; else it would only find no cache of the teacher as it is now.
    """

    found: str
    fix: str
    stops: bool


def stale_cache(section: LocalTeacherSection, directory: str | None) -> Stale | None:
    """Say whether a teacher's cache was made with other settings than its files hold now.

    Args:
        section: A teacher that is to be cached.
        directory: As `cache.directory`; None is the default folder.
    """
    settings = _settings(section)
    if settings is None or (directory is not None and "://" in directory):
        return None
    if directory is not None:
        folder = Path(directory, section.name)
        nearest = _nearest([folder], section, settings)
        fix = "give another cache.directory, or delete it"
    else:
        folders = sorted((cache_dir() / "teachers").glob(f"{section.name}-{'[0-9a-f]' * 16}"))
        nearest = _nearest(folders, section, settings)
        fix = "run `collegium cache RECIPE`, which makes one of it as it is now"
    if not nearest:
        return None
    first = nearest[0]
    more = f" ({len(nearest) - 1} more differ)" if len(nearest) > 1 else ""
    name = ".".join(first.path[1:])
    found = f"a cache was made with {first.path[0]}: {name} {first.before}, now {first.after}{more}"
    return Stale(found, fix, stops=directory is not None)


def _settings(section: LocalTeacherSection) -> Settings | None:
    """Settings of a teacher; None if the hub would be asked for them, or they cannot be read."""
    if section.adapter is not None and not is_local(section.adapter):
        return None
    try:
        return teacher_settings(section.model, adapter=section.adapter, runs_code=section.trust_remote_code)
    except (DataError, OSError):
        return None


def _nearest(
    folders: Sequence[Path], section: LocalTeacherSection, settings: Settings
) -> Sequence[Difference] | None:
    """The differences of the cache that has the fewest; None if there is none of this model."""
    kept = [kept for folder in folders for kept in _kept(folder, section.model)]
    return min((list(differences(before, settings)) for before in kept), key=len, default=None)


def _kept(folder: Path, model: str) -> Iterator[Settings]:
    """Settings in the manifest of a cache, finished or begun; nothing if it is of another model, or damaged."""
    for name in ("manifest.json", "begun.json"):
        try:
            teacher: dict[str, Any] = json.loads((folder / name).read_bytes())["teacher"]
            if teacher["model"] == model and isinstance(teacher.get("settings"), dict):
                yield teacher["settings"]
            return
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
