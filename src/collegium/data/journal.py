"""Progress of a preparation on disk: rewritten after every shard, removed at the end.

A shard ends inside some document. So the place of that document, the number of its tokens that are
written, and the counts up to it are all there is to know.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from collegium.base.digests import sealed, unsealed
from collegium.base.errors import DataError
from collegium.data.storage import FileRecord, read_json, write_json


JOURNAL_NAME = "progress.json"


@dataclass
class Journal:
    """State between two shards.

    Attributes:
        fingerprint: Fingerprint of the preparation.
        next_document: Number of the next document, of the source that is read.
        source_index: Source that is read.
        source_state: Position in it.
        skip_tokens: Tokens of the document at that position that are written already.
        counts: Documents by source and by what became of them.
        tokens: Training tokens by source.
        files: Files written so far.
    """

    fingerprint: str
    next_document: int = 0
    source_index: int = 0
    source_state: dict[str, Any] = field(default_factory=dict)
    skip_tokens: int = 0
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    files: dict[str, FileRecord] = field(default_factory=dict)

    @classmethod
    def load(cls, directory: Path, fingerprint: str) -> "Journal | None":
        """The journal of an interrupted preparation, if there is one.

        Raises:
            DataError: if it belongs to another preparation.
        """
        path = directory / JOURNAL_NAME
        if not path.exists():
            return None
        try:
            content = unsealed(read_json(path))
        except ValueError as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path}: is damaged ({error}): delete {directory} and prepare it again") from None
        if content["fingerprint"] != fingerprint:
            raise DataError(
                f"{directory}: holds an unfinished preparation with fingerprint "
                f"{content['fingerprint']}, now {fingerprint} is asked for (another source, "
                "tokenizer or setting): give another data.directory, or delete it"
            )
        files = {name: FileRecord(**record) for name, record in content.pop("files").items()}
        return cls(**content, files=files)

    def save(self, directory: Path) -> None:
        """Write it, whole or not at all."""
        write_json(directory / JOURNAL_NAME, sealed(asdict(self)))
