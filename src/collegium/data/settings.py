"""Arguments of a preparation, and the progress that it reports."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SourceLimits:
    """Limits on how much of a source is used.

    Attributes:
        max_documents: Documents to read at most; blank ones do not count, dropped ones do.
        max_tokens: Training tokens at most; the document that reaches them is cut.
        skip_documents: Documents at the beginning that are not trained on; blank ones do not count.
        min_characters: Shorter documents are dropped; blanks around them do not count.
    """

    max_documents: int | None = None
    max_tokens: int | None = None
    min_characters: int = 16
    skip_documents: int = 0


@dataclass(frozen=True)
class PrepareSettings:
    """Arguments of `prepare_text` that decide what is written; `limits` has every source."""

    block_size: int
    held_out_documents: int
    add_bos: bool
    add_eos: bool
    bos_at_segments: bool
    max_bad_fraction: float
    near_duplicate_threshold: float
    blocks_per_shard: int
    limits: dict[str, SourceLimits]


@dataclass(frozen=True)
class PrepareProgress:
    """Progress of a preparation.

    Attributes:
        source: Source that is read.
        documents: Documents of it read so far, blank ones not counted.
        tokens: Training tokens of it so far.
        tokens_total: Its `max_tokens`, if that is set.
        seconds: Time since this call began to read for training.
        tokens_per_second: Speed over that time.
    """

    source: str
    documents: int
    tokens: int
    tokens_total: int | None
    seconds: float
    tokens_per_second: float

    @property
    def seconds_left(self) -> float | None:
        """Estimate for this source, if its total is known."""
        if self.tokens_total is None or self.tokens_per_second == 0:
            return None
        return (self.tokens_total - self.tokens) / self.tokens_per_second
