"""One model in a run's lineage: its origin, its licence and its size.

Nothing here may stop a run that has ended well: what cannot be found is None. Licences are read from the
recipe, else from the card of the model on this machine, never from the network.
"""

import json
import struct
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from collegium.alignment.tokenizer_match import vocab_size_of
from collegium.assembly.cache import identify
from collegium.assembly.tokenizers import teacher_tokenizer
from collegium.base.errors import UserError
from collegium.base.references import resolve_reference
from collegium.cache.folder import Folder
from collegium.cache.manifest import TeacherIdentity, read_manifest
from collegium.models.pretrained import count_parameters
from collegium.recipe.sections.models import CachedTeacherSection, LocalTeacherSection, TeacherSection
from collegium.report.card.on_disk import (
    RepoType,
    cached_file,
    licence_on_disk,
    origin_of,
    resolved_revision,
    shown_reference,
)


if TYPE_CHECKING:
    from collegium.assembly.run import Run

ADAPTER_NAME = "adapter_model.safetensors"
MAX_HEADER_BYTES = 100_000_000
"""Largest header of a safetensors file, as its format has it."""


def teacher_of(run: "Run", section: TeacherSection) -> dict[str, Any]:
    """One teacher: what it is, and on which domains it was asked."""
    about = _cached(section) if isinstance(section, CachedTeacherSection) else _local(section, run.tokenizer)
    return {
        "name": section.name,
        **about,
        "domains": list(section.domains or [source.name for source in run.recipe.data.sources]),
    }


def _local(section: LocalTeacherSection, students: PreTrainedTokenizerBase) -> dict[str, Any]:
    tokenizer = teacher_tokenizer(section) or students
    return {
        "kind": section.kind,
        **model_of(section.model, section.revision, section.licence),
        "adapter": _adapter_of(section),
        "parameters": count_parameters(
            section.model, revision=section.revision, trust_remote_code=section.trust_remote_code
        ),
        "vocab_size": vocab_size_of(tokenizer),
        "fingerprint": _shown_fingerprint(section, tokenizer),
        "cached": section.cached,
    }


def _shown_fingerprint(section: LocalTeacherSection, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Fingerprint of weights, type and tokenizer; an adapter that is no local folder stands there by its id."""
    try:
        return identify(section, tokenizer).fingerprint
    except UserError:
        return None


def _adapter_of(section: LocalTeacherSection) -> dict[str, Any] | None:
    if section.adapter is None:
        return None
    about = model_of(section.adapter, section.adapter_revision, section.licence, config_name="adapter_config.json")
    if about["origin"] == "hub":
        file = cached_file(section.adapter, ADAPTER_NAME, revision=section.adapter_revision)
        folder = None if file is None else file.parent
    else:
        folder = Path(path_of(section.adapter))
    return {**about, "parameters": None if folder is None else stored_parameters(folder)}


def _cached(section: CachedTeacherSection) -> dict[str, Any]:
    """A teacher of which only the cache is known, and what that says."""
    identity = read_manifest(Folder.at(section.path)).teacher
    tokenizer = teacher_tokenizer(section)
    return {
        "kind": section.kind,
        **_known_of(identity, section.licence),
        "adapter": None,
        "parameters": None,
        "vocab_size": identity.vocab_size if tokenizer is None else vocab_size_of(tokenizer),
        "fingerprint": identity.fingerprint,
        "cached": True,
    }


def _known_of(identity: TeacherIdentity, licence: str | None) -> dict[str, Any]:
    """The model behind a cache; its commit is in the fingerprint: `ID@COMMIT/...`."""
    about = model_of(identity.model, None, licence)
    name, at, rest = identity.fingerprint.partition("@")
    is_commit = at and name == identity.model and about["origin"] == "hub"
    return {**about, "revision": rest.split("/")[0].split("+")[0] if is_commit else None}


def model_of(
    reference: str, revision: str | None, licence: str | None, *, config_name: str = "config.json"
) -> dict[str, Any]:
    """Origin of a model: its reference as others may read it, commit and licence."""
    origin = origin_of(reference)
    found, stated_by = licence_of(reference, path_of(reference), licence, revision=revision)
    return {
        "model": shown_reference(reference),
        "origin": origin,
        "revision": resolved_revision(reference, revision, name=config_name) if origin == "hub" else None,
        "licence": found,
        "licence_from": stated_by,
    }


def licence_of(
    reference: str,
    path: str,
    given: str | None,
    *,
    revision: str | None = None,
    repo_type: RepoType = "model",
) -> tuple[str | None, str | None]:
    """A licence, and what states it: `recipe` or `model card`; None for both where nothing does."""
    if given is not None:
        return given, "recipe"
    found = licence_on_disk(reference, path, revision=revision, repo_type=repo_type)
    return found, None if found is None else "model card"


def path_of(reference: str) -> str:
    """Path that a reference leads to on this machine; a hub id, or what is not there, as it is."""
    try:
        return resolve_reference(reference)
    except UserError:  # a package that is not here any more
        return reference


def stored_parameters(folder: Path) -> int | None:
    """Numbers in the safetensors files of a folder, by their headers; None if there are no such files."""
    files = sorted(folder.glob("*.safetensors"))
    try:
        return sum(_numbers_in(file) for file in files) if files else None
    except (OSError, ValueError, TypeError, AttributeError, KeyError, struct.error):
        return None


def _numbers_in(file: Path) -> int:
    with file.open("rb") as stream:
        (size,) = struct.unpack("<Q", stream.read(8))
        if size > MAX_HEADER_BYTES:
            raise ValueError(f"{file}: its header is too long")
        header = json.loads(stream.read(size))
    return sum(prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
