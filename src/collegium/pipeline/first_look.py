"""A look at text and at the hub's cache for `check`: no torch, no network, the first rows of the first file."""

import os
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from collegium.assembly.file_source import build_file_source
from collegium.base.references import is_offline
from collegium.recipe.sections.sources import FileSourceSection


_FIRST_ROWS = 5


class Look(NamedTuple):
    """Something that was looked at: what was found, what to do about it, and whether that decides anything."""

    found: str
    fix: str | None = None
    is_sure: bool = True


def first_rows(section: FileSourceSection) -> Look:
    """Formats of all files of a source, and the documents of its first rows.

    Raises:
        DataError: a file is not there, of a format that is not read, or damaged.
    """
    source = build_file_source(section)
    number = len(source.files)
    formats = sorted({source.recognise(file)[1] for file in source.files})
    found = f"{section.path}: {number} file{'s' * (number != 1)} of {' and '.join(formats)}"
    documents = list(islice(source, _FIRST_ROWS))
    bad = [document for document in documents if document.problem]
    if not documents:
        return Look(f"{found}; the first holds no document", "give files with text")
    if len(bad) == len(documents):
        return Look(f"{found}; none of the first {len(documents)} rows is text", f"look at {bad[0].detail}")
    if bad:
        shown = f"{len(bad)} of the first {len(documents)} rows are not text: {bad[0].detail}"
        return Look(f"{found}; {shown}; data.max_bad_fraction decides", is_sure=False)
    return Look(f"{found}; the first {len(documents)} documents are text")


def on_hub(reference: str, *, is_dataset: bool) -> Look:
    """What is known of a hub id without asking the hub: whether something of it lies in its cache here."""
    subject = f"{reference} is not a local path, so it is on the hub"
    if _in_hub_cache(reference, is_dataset=is_dataset):
        return Look(f"{subject}; something of it is in the hub's cache; reading shows if it is all", None, False)
    if is_offline():
        return Look(
            f"{subject}, but HF_HUB_OFFLINE is set, and it is not in the hub's cache",
            "fetch it first, unset HF_HUB_OFFLINE, or give a local folder",
        )
    return Look(f"{subject}: not in the hub's cache, so it is fetched, if the hub can be reached", None, False)


def _in_hub_cache(reference: str, *, is_dataset: bool) -> bool:
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    hub = Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()
    snapshots = hub / f"{'datasets' if is_dataset else 'models'}--{reference.replace('/', '--')}" / "snapshots"
    if is_dataset:
        prepared = Path(os.environ.get("HF_DATASETS_CACHE", home / "datasets")).expanduser()
        return _holds_anything(snapshots) or _holds_anything(prepared / reference.replace("/", "___"))
    return _holds_anything(snapshots)


def _holds_anything(folder: Path) -> bool:
    try:
        return next(folder.iterdir(), None) is not None
    except OSError:
        return False
