"""Find a model or data set on this machine by reference, and the licence that its own card states.

The network is never asked: a licence that is neither in the recipe nor on disk is not known here, and a
card that says so is better than one that waits for a hub.
"""

import re
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError


Origin = Literal["hub", "package", "local"]
RepoType = Literal["model", "dataset"]

CARD_NAME = "README.md"
MAX_CARD_BYTES = 1_000_000
FRONT_MATTER = re.compile(r"\A---[ \t]*\r?\n(.*?)^---[ \t]*$", re.DOTALL | re.MULTILINE)
HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)
FORBIDDEN_IN_ID = re.compile(r"--|\.\.|[.-]/|[.-]$|\.git$")
COMMIT = re.compile(r"[0-9a-f]{40}")


def origin_of(reference: str) -> Origin:
    """Say whether a reference of a recipe leads to the hub, into an installed package, or to a path."""
    if reference.startswith("package:"):
        return "package"
    if reference.startswith(("/", ".", "~")) or reference.endswith(".gguf") or Path(reference).exists():
        return "local"
    return "hub" if is_hub_id(reference) else "local"


def is_hub_id(reference: str) -> bool:
    """Tell whether this can be the id of a repository on the hub: `NAME` or `OWNER/NAME`."""
    return HUB_ID.fullmatch(reference) is not None and not FORBIDDEN_IN_ID.search(reference)


def shown_reference(reference: str) -> str:
    """A reference as others may read it: a path of this machine is its last name only."""
    if origin_of(reference) != "local":
        return reference
    return shown_path(reference)


def shown_path(path: str) -> str:
    """The last name of a path; a reference into a package as it is."""
    if path.startswith("package:"):
        return path
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1] or "local folder"


def cached_file(
    repo_id: str, name: str, *, revision: str | None = None, repo_type: RepoType = "model"
) -> Path | None:
    """A file of a repository in the hub's local cache; None if it is not there."""
    try:
        found = try_to_load_from_cache(repo_id, name, revision=revision, repo_type=repo_type)
    except (HFValidationError, OSError, ValueError):
        return None
    return Path(found) if isinstance(found, str) else None


def resolved_revision(
    repo_id: str, revision: str | None, *, name: str = "config.json", repo_type: RepoType = "model"
) -> str | None:
    """The commit that a branch or tag is in the local cache, else what was asked for."""
    if revision is not None and COMMIT.fullmatch(revision):
        return revision
    file = cached_file(repo_id, name, revision=revision, repo_type=repo_type)
    if file is not None and COMMIT.fullmatch(file.parent.name):  # .../snapshots/COMMIT/NAME
        return file.parent.name
    return revision


def licence_on_disk(
    reference: str, path: str, *, revision: str | None = None, repo_type: RepoType = "model"
) -> str | None:
    """Read the licence in the card of a model or data set on this machine.

    Args:
        reference: As in the recipe.
        path: Where that is, if it is no hub id: a folder, a file or a glob.
        revision: Branch, tag or commit on the hub.
        repo_type: Of what is on the hub.
    """
    if origin_of(reference) == "hub":
        card = cached_file(reference, CARD_NAME, revision=revision, repo_type=repo_type)
        return None if card is None else stated_licence(card)
    place = Path(path)
    folder = place if place.is_dir() else place.parent
    return stated_licence(folder / CARD_NAME)


def stated_licence(card: Path) -> str | None:
    """The licence in the front matter of a card; several are joined, None if it says none."""
    content = front_matter(card)
    licence = content.get("license")
    if licence == "other":
        licence = content.get("license_name") or licence
    named = [licence] if isinstance(licence, str) else licence if isinstance(licence, list) else []
    words = [" ".join(str(item).split()) for item in named if isinstance(item, str)]
    return ", ".join(word for word in words if word)[:100] or None


def front_matter(card: Path) -> dict[str, Any]:
    """The YAML at the head of a card; empty if there is none that can be read."""
    try:
        if card.stat().st_size > MAX_CARD_BYTES:
            return {}
        found = FRONT_MATTER.match(card.read_text(encoding="utf-8"))
        content = YAML(typ="safe", pure=True).load(found.group(1)) if found else None
    except (OSError, ValueError, YAMLError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
