"""Prepared text on disk: blocks for training, blocks held out, and a manifest.

- `manifest.json` is written last: fingerprint, what decided the documents (`text`), counts, and size and
  checksum of every file.
- `train/train-00000.arrow` and so on are Arrow streams, which `datasets.load_dataset` reads too.
- `held_out/NAME.arrow` is the same for the held-out blocks of one domain.
- `held_out/NAME.jsonl` is the text of its documents.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collegium.base.digest import json_digest
from collegium.base.digests import unsealed
from collegium.base.errors import DataError
from collegium.data.blocks import PackedBlocks
from collegium.data.storage import read_json
from collegium.data.stored_blocks import ArrowFile, StoredBlocks, open_files, read_recorded


SCHEMA_VERSION = 3
MANIFEST_NAME = "manifest.json"


def train_file(shard: int) -> str:
    """Name of a shard of training blocks, relative to the folder."""
    return f"train/train-{shard:05d}.arrow"


def held_out_file(domain: str) -> str:
    """Name of a domain's held-out blocks, relative to the folder."""
    return f"held_out/{domain}.arrow"


def held_out_text_file(domain: str) -> str:
    """Name of a domain's held-out documents as text, relative to the folder."""
    return f"held_out/{domain}.jsonl"


@dataclass(frozen=True)
class PreparedText:
    """Prepared text, opened.

    Attributes:
        directory: Where it lies.
        train: Training blocks of all domains.
        held_out: Held-out blocks by domain.
        manifest: What was written, with counts by source and reason.
        fingerprint: Identity of sources, tokenizer and settings.
    """

    directory: Path
    train: PackedBlocks
    held_out: dict[str, PackedBlocks]
    manifest: dict[str, Any]
    fingerprint: str

    @classmethod
    def load(cls, directory: Path) -> "PreparedText":
        """Open a prepared folder; every file is read and compared with its digest.

        Raises:
            DataError: if it is not finished, or a file does not agree with the manifest.
        """
        manifest = read_manifest(directory)
        opened = _open(directory, manifest["files"])
        return cls(
            directory=directory,
            train=PackedBlocks(StoredBlocks([opened[n] for n in opened if n.startswith("train/")])),
            held_out={n: PackedBlocks(StoredBlocks([opened[held_out_file(n)]])) for n in manifest["sources"]},
            manifest=manifest,
            fingerprint=manifest["fingerprint"],
        )

    def held_out_texts(self, domain: str) -> list[str]:
        """The held-out documents of a domain, as they were read.

        Raises:
            DataError: the file is not what was written.
        """
        name = held_out_text_file(domain)
        lines = _read(self.directory, name, self.manifest["files"][name]).splitlines()
        return [json.loads(line)["text"] for line in lines]

    @property
    def text_identity(self) -> str:
        """Identity of the documents and their numbers, whatever the tokenizer and the size of blocks.

        With `max_tokens`, which tokenizers count differently, one text may end before another of the same
        identity.
        """
        return json_digest(self.manifest["text"])

    def require_same_text(self, other: "PreparedText") -> None:
        """Compare with the same text prepared with another tokenizer: the same number, the same document.

        Raises:
            DataError: it is not the same text; says in what they differ.
        """
        ours = self.manifest["text"]
        theirs = other.manifest["text"]
        differing = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
        if differing:
            raise DataError(
                f"{other.directory}: is not the text of {self.directory} in other tokens: they differ in "
                f"{', '.join(differing)}; prepare both from the same sources with the same data settings "
                "(tokenizer, add_bos, add_eos, block_size and max_tokens may differ)"
            )

    def verify(self) -> None:
        """Read every file and compare its checksum, again after `load` did.

        Raises:
            DataError: naming the first damaged file.
        """
        for name, record in self.manifest["files"].items():
            _read(self.directory, name, record)


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a finished folder.

    Raises:
        DataError: if there is none, or it is damaged or of another version.
    """
    path = directory / MANIFEST_NAME
    manifest = read_json(path)
    version = manifest.get("schema") if isinstance(manifest, dict) else None
    if version != SCHEMA_VERSION:
        raise DataError(
            f"{path}: is of schema {version}, this version reads {SCHEMA_VERSION}: "
            "prepare the text again in another data.directory"
        )
    try:
        return dict(unsealed(manifest))
    except ValueError as error:
        raise _damaged(directory, MANIFEST_NAME, str(error)) from None


def _open(directory: Path, files: Mapping[str, Mapping[str, Any]]) -> dict[str, ArrowFile]:
    """The files of blocks, by name; texts are compared too."""
    blocks = {name: record for name, record in files.items() if name.endswith(".arrow")}
    opened = {}
    for name, found in zip(blocks, open_files({directory / n: r for n, r in blocks.items()}), strict=True):
        if isinstance(found, ValueError):
            raise _damaged(directory, name, str(found)) from found
        opened[name] = found
    for name in files.keys() - blocks.keys():
        _read(directory, name, files[name])
    return opened


def _read(directory: Path, name: str, record: Mapping[str, Any]) -> bytes:
    try:
        return read_recorded(directory / name, record)
    except ValueError as error:
        raise _damaged(directory, name, str(error)) from error


def _damaged(directory: Path, name: str, reason: str) -> DataError:
    return DataError(
        f"{directory / name}: is damaged: {reason}; delete {directory} and run `collegium prepare` again"
    )
