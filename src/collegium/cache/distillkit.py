"""Reads the Parquet that DistillKit (arcee-ai/DistillKit) writes of a teacher.

It keeps k tokens a position. Their ids are packed, highest bit first. Of the log-probabilities, which go down,
the first are floats; the others are a sum of terms and quantised residuals. How, its compression config says,
which is no part of the Parquet file: the sampler writes it beside it as `compression_config.yaml`. Without it
the bytes mean nothing.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from collegium.base.errors import DataError, one_line
from collegium.cache.codec import Floats, TokenLists
from collegium.losses.weighting import WeightingName


ROWS_PER_GROUP = 8
"""Rows in memory at once."""

FloatName = Literal["float16", "bfloat16", "float32", "float64"]
Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]

_FLOATS = {kind: getattr(torch, kind) for kind in ("float16", "bfloat16", "float32", "float64")}
_FUNCTIONS = {"sqrt": torch.sqrt, "exp": torch.exp}
_COLUMNS = ("input_ids", "compressed_logprobs", "bytepacked_indices")
_DAMAGE = (pa.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError, MemoryError)


@dataclass(frozen=True)
class ResidualBin:
    """Ranks whose residuals share a scale: DistillKit's `QuantizationBin`."""

    scale_dtype: FloatName
    element_bits: int
    num_elements: int


@dataclass(frozen=True)
class DistillKitCompression:
    """What the bytes mean: DistillKit's `DistributionQuantizationConfig`, names and defaults as there.

    Its `error_diffusion` changes what is written, not how it is read.

    Attributes:
        vocab_size: Its `d`. It sets the bits of an id; ids from there on are refused.
        k: Tokens a position.
        exact_k: So many of them are floats.
        exact_dtype: Of those.
        polynomial_terms: Functions of the rank behind those, from 0: powers, `sqrt` or `exp`.
        term_dtype: Of the coefficients.
        residual_bins: What is added to the terms, from rank 0 on.
        delta_encoding: Whether an entry is stored as its difference to the one before.
        normalize_t: Whether ranks go from 0 to 1.

    Raises:
        DataError: it fits no file.
    """

    vocab_size: int
    k: int
    exact_k: int
    exact_dtype: FloatName = "float32"
    polynomial_terms: tuple[int | Literal["sqrt", "exp"], ...] = ()
    term_dtype: FloatName = "float32"
    residual_bins: tuple[ResidualBin, ...] = ()
    delta_encoding: bool = True
    normalize_t: bool = False

    def __post_init__(self) -> None:
        bins, terms, rest = self.residual_bins, self.polynomial_terms, self.k - self.exact_k
        checks = {
            "vocab_size is below 2 or k": self.vocab_size >= max(2, self.k),
            "k is below 1 or exact_k": self.k >= max(1, self.exact_k) and self.exact_k >= 0,
            "nothing stands for ranks from exact_k on": bool(bins or terms or not rest),
            "residual_bins are of more than k - exact_k ranks": sum(b.num_elements for b in bins) <= rest,
            "element_bits lie outside of 1 to 32": all(1 <= b.element_bits <= 32 for b in bins),
            "a type is unknown": {self.exact_dtype, self.term_dtype, *(b.scale_dtype for b in bins)}
            <= set(_FLOATS),
            "a term is unknown": all(isinstance(t, int) or t in _FUNCTIONS for t in terms),
        }
        if wrong := [reason for reason, fine in checks.items() if not fine]:
            raise DataError(f"DistillKit's compression config: {wrong[0]}; take it from compression_config.yaml")

    @property
    def id_bits(self) -> int:
        """Bits of an id; the logarithm is taken in float32, as DistillKit takes it."""
        return int(np.ceil(np.log2(np.float32(self.vocab_size))))

    @property
    def part_bytes(self) -> list[int]:
        """Bytes of exact values, of coefficients, and of each bin's scale and its residuals."""
        parts = [self.exact_k * _FLOATS[self.exact_dtype].itemsize]
        parts.append(len(self.polynomial_terms) * _FLOATS[self.term_dtype].itemsize)
        for group in self.residual_bins:
            parts += [_FLOATS[group.scale_dtype].itemsize, -(-group.num_elements * group.element_bits // 8)]
        return parts


@dataclass(frozen=True)
class ImportedRow:
    """One row of DistillKit's.

    Attributes:
        input_ids: Tokens, [S].
        segment_lengths: Of its documents, if it is packed.
        lists: S of them or S - 1. Each is of the token after that in `input_ids`, which is not in the row at
            the end of a document.
    """

    input_ids: Ints
    segment_lengths: Ints
    lists: TokenLists


def import_distillkit(
    path: Path,
    compression: DistillKitCompression,
    *,
    weighting: WeightingName = "uniform",
    kd_temperature: float = 1.0,
) -> Iterator[ImportedRow]:
    """Rows of a Parquet file that DistillKit wrote, or of all in a folder, a few at a time.

    Such a file cannot tell, and nothing is made up for it:

    - The entropy of the full distribution, only of the part that is listed. So a teacher read from it can be
      weighted by what looks at no distribution, uniform and static; an entropy of NaN would make it invalid.
    - The probability of a label that is not listed, hence the teacher's own loss and its calibration.
    - Another temperature, which takes all tokens; hidden states; whose text, tokenizer and teacher it was.
    - Whether it is intact: it has no checksums. A changed byte is found if a length, an id, or the sign of an
      exact value gives it away.

    Only exact values are exact: lists may sum to a little more than 1, and are handed out as they are, except
    that a probability above 1 becomes 1. Terms are evaluated as its writer evaluates them; the rounding of
    sums to `exact_dtype` by its reader is left out. Entries of -inf stand for none and are left out.

    The older columns `packed_indices`, `exact_values` and `coeffs` are refused: they hold log-probabilities or
    centred logits, and neither file nor config says which. So are plain `token_ids` with `top_values`, residuals
    of more than 32 bits, and what `pack_logits` saved in the format of `datasets`, which is no Parquet.

    Raises:
        DataError: more is asked for than is known, or a file is damaged or of another config.
    """
    if weighting not in ("uniform", "static"):
        raise DataError(
            f"{path}: weighting {weighting} needs the entropy of the full distribution, which lists of "
            "DistillKit do not have; set it to uniform or static, or run `collegium cache` for this teacher"
        )
    if kd_temperature != 1.0:
        raise DataError(
            f"{path}: kd_temperature {kd_temperature:g} needs the full distribution, which lists of DistillKit "
            "do not have; set it to 1, or run `collegium cache` for this teacher"
        )
    files = (
        sorted(path.glob("*.parquet"), key=lambda file: (len(file.name), file.name)) if path.is_dir() else [path]
    )
    if not files:
        raise DataError(f"{path}: holds no Parquet file")
    return (row for file in files for row in _read(file, compression))


def _read(path: Path, compression: DistillKitCompression) -> Iterator[ImportedRow]:
    number = 0
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False)
        names = file.schema_arrow.names
        if missing := [name for name in _COLUMNS if name not in names]:
            raise ValueError(f"there is no column {missing[0]}, but {', '.join(names)}")
        columns = [name for name in (*_COLUMNS, "attention_mask") if name in names]
        for batch in file.iter_batches(ROWS_PER_GROUP, columns=columns):
            for index in range(len(batch)):
                yield _imported({name: batch.column(name)[index].values for name in columns}, compression)
                number += 1
    except _DAMAGE as error:
        raise DataError(
            f"{path}: row {number} cannot be read: {one_line(error) or type(error).__name__}"
        ) from error


def _imported(columns: Mapping[str, Any], compression: DistillKitCompression) -> ImportedRow:
    if missing := [name for name, values in columns.items() if values is None]:
        raise ValueError(f"{missing[0]} is missing")
    input_ids = _flat(columns["input_ids"], pa.int64())
    mask = _flat(columns["attention_mask"], pa.int64()) if "attention_mask" in columns else np.ones_like(input_ids)
    id_bytes = -(-compression.k * compression.id_bits // 8)
    packed = _matrix(columns["bytepacked_indices"], id_bytes, "bytepacked_indices")
    content = _matrix(columns["compressed_logprobs"], sum(compression.part_bytes), "compressed_logprobs")
    if not len(input_ids) - 1 <= len(packed) == len(content) <= len(input_ids) == len(mask):
        raise ValueError(f"{len(input_ids)} tokens, {len(packed)} lists of ids, {len(content)} of probabilities")
    if not len(mask) or mask.min() < 1 or input_ids.min() < 0:
        raise ValueError("it is empty, or padded, or has tokens below 0")
    starts = np.flatnonzero(np.diff(mask, prepend=0))  # documents are numbered from 1 in the mask
    lists = _decode(
        _unpack(packed, compression.id_bits, compression.k), _logprobs(content, compression), compression
    )
    return ImportedRow(input_ids, np.diff(starts, append=len(mask)), lists)


def _flat(values: Any, kind: pa.DataType) -> NDArray[Any]:
    if values.null_count:
        raise ValueError("values are missing")
    flat: NDArray[Any] = values.cast(kind).to_numpy()
    return flat


def _matrix(rows: Any, width: int, name: str) -> Bytes:
    """[N width], one row for each position."""
    lengths = set(rows.value_lengths().to_pylist())
    if lengths - {width}:
        raise ValueError(f"{name} has positions of {min(lengths - {width}, key=str)} bytes, by the config {width}")
    return _flat(rows.flatten(), pa.uint8()).reshape(len(rows), width)


def _unpack(content: Bytes, bits: int, size: int) -> Ints:
    """Integers of some bits each, the highest first, [N size]."""
    stream = np.unpackbits(content, axis=1)[:, : size * bits].reshape(len(content), size, bits)
    values = np.zeros((len(content), size), np.int64)
    for bit in range(bits):
        values = values << 1 | stream[:, :, bit]
    return values


def _floats(content: Bytes, kind: FloatName) -> torch.Tensor:
    """[N n], of n each; copied, since a view as wider numbers has to be aligned."""
    dtype: torch.dtype = _FLOATS[kind]
    if not content.size:
        return torch.zeros(len(content), 0, dtype=dtype)
    return (
        torch.from_numpy(content.flatten()).view(dtype).reshape(len(content), content.shape[1] // dtype.itemsize)
    )


def _logprobs(content: Bytes, compression: DistillKitCompression) -> NDArray[np.float64]:
    """Log-probabilities of a row, [N k]."""
    exact_bytes, coefficient_bytes, *bins = np.split(content, np.cumsum(compression.part_bytes)[:-1], axis=1)
    exact = _floats(exact_bytes, compression.exact_dtype).double().numpy()
    if (exact > 1e-3).any():
        raise ValueError("an exact log-probability, or its difference to the one before, is above 0")
    coefficients = _floats(coefficient_bytes, compression.term_dtype)  # [N terms]
    rest = (_terms(compression) * coefficients[:, None]).sum(-1).double().numpy()  # [N k - exact_k]
    first = 0
    for group, scale, packed in zip(compression.residual_bins, bins[::2], bins[1::2], strict=True):
        levels = _unpack(packed, group.element_bits, group.num_elements)
        levels = 2 * levels - 1 if group.element_bits == 1 else levels - 2 ** (group.element_bits - 1)
        rest[:, first : first + group.num_elements] += levels * _floats(scale, group.scale_dtype).double().numpy()
        first += group.num_elements
    values = np.concatenate([exact, rest], 1)
    return np.cumsum(values, 1) if compression.delta_encoding else values


def _terms(compression: DistillKitCompression) -> torch.Tensor:
    """Each term at each rank, [k - exact_k terms]."""
    size = compression.k - compression.exact_k
    ranks = torch.linspace(0, 1, size) if compression.normalize_t else torch.arange(size, dtype=torch.float32)
    terms = [ranks**t if isinstance(t, int) else _FUNCTIONS[t](ranks) for t in compression.polynomial_terms]
    table = torch.stack(terms, -1) if terms else torch.zeros(size, 0)
    return table.to(_FLOATS[compression.term_dtype])


def _decode(ids: Ints, logprobs: NDArray[np.float64], compression: DistillKitCompression) -> TokenLists:
    """Lists of a row, from ids and log-probabilities by rank, [N k] both."""
    if not (logprobs < np.inf).all():
        raise ValueError("a log-probability is not a number")
    keep = logprobs > -np.inf
    if (keep & (ids >= compression.vocab_size)).any():
        raise ValueError(
            f"token {ids[keep].max()} lies outside of the vocabulary of {compression.vocab_size}: the config is "
            "another file's, or the head is wider than the vocabulary (then give its width, if that takes "
            f"{compression.id_bits} bits too)"
        )
    order = np.argsort(np.where(keep, ids, compression.vocab_size), 1, kind="stable")
    ids, keep = np.take_along_axis(ids, order, 1), np.take_along_axis(keep, order, 1)
    if (keep[:, 1:] & (ids[:, 1:] == ids[:, :-1])).any():
        raise ValueError("a token is listed twice: the config is another file's, or it is damaged")
    logprobs = np.take_along_axis(logprobs, order, 1)[keep]
    probs: Floats = np.exp(np.minimum(logprobs, 0.0)).astype(np.float32)
    return TokenLists(keep.sum(1), ids[keep], probs)
