"""The manifest of a cache: JSON, written last, that knows its own checksum.

It is read back only if its bytes are those that would be written, so that a change anywhere is seen.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, TypeVar

from collegium.base.digest import json_digest
from collegium.base.errors import DataError
from collegium.cache.folder import Folder


SCHEMA_VERSION = 2
"""Since it holds the teacher's settings; a manifest without them is of version 1."""

MANIFEST_NAME = "manifest.json"
INDEX_NAME = "index.parquet"
HEAD_NAME = "head.safetensors"
SOURCE_NAME = "source.yaml"

Mode = Literal["top_k", "sampled", "hidden_states"]
T = TypeVar("T")

BAD_MANIFEST = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What reading a damaged manifest can raise."""


@dataclass(frozen=True)
class CacheSettings:
    """Settings of what is kept of a teacher.

    Attributes:
        mode: `top_k`: the most probable tokens. `sampled`: tokens drawn from the distribution.
            `hidden_states`: the last hidden states and the head, from which everything follows.
        max_kept: At most this many tokens a position.
        min_probability: Tokens less probable than this are not kept.
        num_samples: Draws a position, with replacement, for `sampled`.
        kd_temperature: Softens the distribution that is listed, beside the teacher's own temperature.
        target_temperature: The teacher's own, of the distribution that is mixed.
        weight_temperature: The teacher's own, of the entropy that sets its weight.
        rows_per_shard: Blocks of one file, the unit of resuming.
        seed: Seed of what is drawn.
    """

    mode: Mode = "top_k"
    max_kept: int = 256
    min_probability: float = 1e-3
    num_samples: int = 50
    kd_temperature: float = 1.0
    target_temperature: float = 1.0
    weight_temperature: float = 1.0
    rows_per_shard: int = 256
    seed: int = 0


@dataclass(frozen=True)
class TeacherIdentity:
    """The teacher whose distributions are kept.

    Attributes:
        fingerprint: Identity of weights, revision, type and tokenizer.
        model: Hub id or path, for people.
        vocab_size: Common vocabulary of student and teacher.
        hidden_size: Width of its hidden states.
        num_layers: Number of its layers.
        settings: What else decides its numbers, by file (config.json, adapter_config.json); None in a cache of an
            earlier version, which did not keep it.
    """

    fingerprint: str
    model: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    settings: dict[str, Any] | None = None


@dataclass(frozen=True)
class Shard:
    """One file of the cache.

    Attributes:
        name: Relative to the folder.
        first_row: Row of the cache that its first one is.
        rows: Its rows.
        tokens: Positions in them.
        bytes: Its size.
        sha256: Its checksum.
    """

    name: str
    first_row: int
    rows: int
    tokens: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """All there is to know before a shard is opened.

    Attributes:
        teacher: The teacher whose distributions are kept.
        text: Fingerprint of the prepared text.
        splits: Rows of each part of the text, in order.
        settings: What is kept.
        shards: Files of rows.
        files: SHA-256 of every other file.
    """

    teacher: TeacherIdentity
    text: str
    splits: dict[str, int]
    settings: CacheSettings
    shards: tuple[Shard, ...] = ()
    files: dict[str, str] = field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        """Blocks of all parts."""
        return sum(self.splits.values())

    @property
    def bytes_per_token(self) -> float:
        """Size of the shards over their positions."""
        return sum(shard.bytes for shard in self.shards) / max(1, sum(shard.tokens for shard in self.shards))

    @property
    def identity(self) -> str:
        """Hash of what decides the content; each shard carries it."""
        content = {k: v for k, v in self._tree().items() if k not in ("schema", "shards", "files")}
        return json_digest(content)[:32]

    @property
    def earlier(self) -> "Manifest":
        """The same as an earlier version made it, which did not keep the teacher's settings."""
        return replace(self, teacher=replace(self.teacher, settings=None))

    @property
    def is_earlier(self) -> bool:
        """True if it is of an earlier version."""
        return self.teacher.settings is None

    def _tree(self) -> dict[str, Any]:
        tree = {"schema": SCHEMA_VERSION, **asdict(self)}
        if self.is_earlier:
            tree["schema"] = 1
            del tree["teacher"]["settings"]
        return tree

    def to_bytes(self) -> bytes:
        """The file."""
        content = self._tree()
        digest = json_digest(content, sort_keys=False)
        return (json.dumps({**content, "sha256": digest}, indent=1) + "\n").encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> "Manifest":
        """Read the file.

        Raises:
            ValueError: it is not as it was written.
        """
        tree = json.loads(content)
        version = tree.get("schema") if isinstance(tree, dict) else None
        if version not in (1, SCHEMA_VERSION):
            raise ValueError(f"it is of schema {version}, this version reads 1 and {SCHEMA_VERSION}")
        manifest = cls(
            teacher=_read(TeacherIdentity, {"settings": None, **tree["teacher"]}),
            text=tree["text"],
            splits=tree["splits"],
            settings=_read(CacheSettings, tree["settings"]),
            shards=tuple(_read(Shard, shard) for shard in tree["shards"]),
            files=tree["files"],
        )
        if manifest.to_bytes() != content:
            raise ValueError("its checksum is wrong")
        return manifest


def _read(kind: type[T], tree: Mapping[str, Any]) -> T:
    return kind(**{f.name: tree[f.name] for f in fields(kind)})  # type: ignore[arg-type]


def read_manifest(folder: Folder) -> Manifest:
    """The manifest of a finished cache.

    Raises:
        DataError: there is none, or it is damaged.
    """
    try:
        return Manifest.from_bytes(folder.read(MANIFEST_NAME))
    except FileNotFoundError:
        raise DataError(
            f"{folder.location}: holds no finished cache; `collegium cache RECIPE` makes one, or resumes it"
        ) from None
    except BAD_MANIFEST as error:
        raise DataError(
            f"{folder.path(MANIFEST_NAME)}: is damaged ({error}): run `collegium cache repair {folder.location}`"
        ) from error
