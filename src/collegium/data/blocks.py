"""Packed blocks as a map-style data set for PyTorch."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc
import xxhash
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from collegium.base.errors import DataError
from collegium.data.documents import Document
from collegium.data.given_rows import rows_of
from collegium.data.given_tokens import GivenTokens, masks_tokens
from collegium.data.packing import Packer, blocks_to_table
from collegium.data.rows import Columns
from collegium.data.signs import TextSigns
from collegium.data.stored_blocks import DOMAIN, StoredBlocks
from collegium.data.tokenization import DocumentTokenizer


logger = logging.getLogger(__name__)


_SEGMENT_COLUMNS = {f"segment_{of}" for of in ("lengths", "documents", "bytes", "starts", "ends", "prompts")}
_COLUMNS = {"input_ids", DOMAIN, *_SEGMENT_COLUMNS}
_ROWS_AT_ONCE = 4096


class PackedBlocks(Dataset[dict[str, Any]]):
    """Rows of packed tokens, each with its `sample_id`.

    A row has `input_ids`, `segment_lengths`, `segment_documents`, `segment_bytes` (UTF-8 bytes of a
    segment's predicted tokens), `segment_starts` and `segment_ends` (UTF-8 bytes of the document before a
    segment's first token, and up to the end of its last), `segment_prompts` (its first tokens that are given
    and not predicted) and `domain`.

    Args:
        dataset: Rows with these columns.
        sample_ids: Number of each row in the data set it comes from; by default its index.
    """

    def __init__(self, dataset: datasets.Dataset | StoredBlocks, sample_ids: Sequence[int] | None = None) -> None:
        self.dataset = dataset
        self._sample_ids = range(len(dataset)) if sample_ids is None else sample_ids

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row: dict[str, Any] = self.dataset[index]
        return {**row, "sample_id": self._sample_ids[index]}

    @property
    def digest(self) -> str:
        """Identity of all rows, their order and numbers, by content; 0.2 s for 10 million tokens in memory."""
        state = xxhash.xxh3_128(np.asarray(self._sample_ids, np.int64).tobytes())
        if isinstance(self.dataset, StoredBlocks):
            state.update(self.dataset.digest.encode())
            return state.hexdigest()
        for name in sorted(set(self.dataset.column_names) & _COLUMNS):
            state.update(name.encode())
            state.update(_column_digest(self.dataset, name))
        return state.hexdigest()

    def take(self, num_blocks: int) -> "PackedBlocks":
        """At most `num_blocks` blocks, evenly spaced over all; they keep their `sample_id`."""
        num_blocks = min(num_blocks, len(self))
        indices = [i * len(self) // num_blocks for i in range(num_blocks)]
        return PackedBlocks(self.dataset.select(indices), [self._sample_ids[i] for i in indices])


def _column_digest(dataset: datasets.Dataset, name: str) -> bytes:
    """Digest of a column's values and of the lengths of its lists, however it is laid out in memory."""
    values = xxhash.xxh3_128()
    lengths = xxhash.xxh3_128()
    for table in dataset.select_columns([name]).with_format("arrow").iter(_ROWS_AT_ONCE):
        for chunk in table[name].chunks:
            if name == DOMAIN:
                values.update("\0".join([*chunk.to_pylist(), ""]).encode())
                continue
            lengths.update(np.asarray(pc.list_value_length(chunk), np.int64).tobytes())
            values.update(np.asarray(pc.list_flatten(chunk), np.int64).tobytes())
    return values.digest() + lengths.digest()


def pack_documents(
    dataset: datasets.Dataset | Iterable[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    block_size: int,
    text_column: str = "text",
    prompt_column: str | None = None,
    add_bos: bool = False,
    add_eos: bool = False,
    domain: str = "text",
) -> PackedBlocks:
    """Pack documents that fit in memory.

    Args:
        dataset: Rows with a text or with `input_ids`, one document each; rows that are packed
            already are taken as they are. Of tokens, `attention_mask` drops padding, and `labels` or
            `completion_mask` may leave out a prompt at the beginning.
        tokenizer: A fast tokenizer.
        block_size: Tokens of a block.
        text_column: Column that holds the text.
        prompt_column: Column of a prompt that comes before the text and is not learnt.
        add_bos: Begin each text with BOS.
        add_eos: End each text with EOS.
        domain: Name of the domain.

    Returns:
        The blocks. For rows without text, `segment_bytes` is 0, and `segment_starts` and
        `segment_ends` are -1, which mean unknown.

    Raises:
        DataError: it is no data set of rows with a length; a row has neither text nor tokens, or a mask of another
            shape; there is nothing to predict.
    """
    rows = rows_of(dataset)
    given = GivenTokens(tokenizer)
    if len(rows) and "segment_lengths" in rows[0]:
        for number, row in enumerate(rows):
            given.require_known(np.asarray(row["input_ids"]), f"row {number}")
        packed = rows if isinstance(rows, datasets.Dataset) else datasets.Dataset.from_list(list(rows))
        return PackedBlocks(packed)
    encoder = DocumentTokenizer(tokenizer, add_bos=add_bos, add_eos=add_eos)
    packer = Packer(block_size=block_size, domain=domain)
    blocks = []
    signs = TextSigns("the data set", encoder.special_texts)
    columns = Columns(text_column, prompt_column)
    for number, row in enumerate(rows):
        if row.get("input_ids") is not None and (row.get(text_column) is None or masks_tokens(row)):
            tokens = given.document(row, f"row {number}")
        else:
            document = _document(row, number, columns)
            signs.see(document)
            tokens = encoder.encode_documents([document])[0]
        blocks += [block for block, _ in packer.add(number, tokens)]
    blocks += packer.flush()
    if not blocks:
        fix = "give longer ones" if len(rows) else "the data set is empty, give one with rows"
        raise DataError(f"nothing to predict in {len(rows)} documents: {fix}")
    for sentence in signs.sentences(sum(block.num_tokens for block in blocks)):
        logger.warning("%s", sentence)
    return PackedBlocks(datasets.Dataset(blocks_to_table(blocks)))


def _document(row: Mapping[str, Any], number: int, columns: Columns) -> Document:
    document = columns.document(row, f"row {number}")
    if document.problem is None:
        return document
    if columns.prompt is None and {"prompt", "completion"} <= row.keys():
        raise DataError(
            f"row {number} has a prompt and a completion: set prompt_column='prompt' and text_column='completion'"
        )
    raise DataError(f"{document.detail}. A row needs a text or 'input_ids'")
