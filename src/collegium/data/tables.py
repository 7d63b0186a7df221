"""Rows of Parquet and Arrow files, from any row on; only the columns of the document are read.

Text may be `string`, `large_string`, `string_view`, a dictionary of one of these, binary, or null in every row. It
is read as bytes, because one undecodable string would make pyarrow raise for the whole batch. Schemas may differ
from file to file in all other columns.
"""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from collegium.base.errors import DataError
from collegium.data.compression import ByteFile
from collegium.data.readers import decoded
from collegium.data.rows import Columns, Documents


_BATCH_ROWS = 256


def read_parquet(file: ByteFile, row: int, *, columns: Columns) -> Documents:
    """One document a row, from row number `row` on; earlier row groups are not read.

    Raises:
        DataError: it is damaged, or a column is absent or holds something else than text.
    """
    try:
        table = pq.ParquetFile(file)
        _check_columns(table.schema_arrow, columns)
        start = 0
        for group in range(table.num_row_groups):
            end = start + table.metadata.row_group(group).num_rows
            if row < end:
                batches = table.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns.names)
                yield from _documents(batches, start, row, columns)
                row = end
            start = end
    except (pa.ArrowException, OSError) as error:
        raise _damaged(error) from error


def read_arrow(file: ByteFile, row: int, *, columns: Columns) -> Documents:
    """One document a row of an Arrow file or stream, from row number `row` on.

    Raises:
        DataError: as for Parquet.
    """
    try:
        schema, batches = _arrow_batches(file)
        _check_columns(schema, columns)
        yield from _documents(batches, 0, row, columns)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(error) from error


def texts_of(batch: pa.RecordBatch | pa.Table, columns: Columns) -> Iterator[dict[str, str | None]]:
    """Rows of a batch with the columns of the document.

    Raises:
        DataError: a column is absent or holds something else than text.
    """
    _check_columns(batch.schema, columns)
    read = {name: _bytes_of(batch.column(name)) for name in columns.names}
    for index in range(batch.num_rows):
        values = {name: column[index] for name, column in read.items()}
        yield {name: None if value is None else decoded(value) for name, value in values.items()}


def _documents(batches: Iterator[pa.RecordBatch], start: int, row: int, columns: Columns) -> Documents:
    """Documents of the rows from number `row` on; `start` is the number of the first row of the first batch."""
    for batch in batches:
        end = start + batch.num_rows
        if row < end:
            for texts in texts_of(batch.select(columns.names).slice(row - start), columns):
                row += 1
                yield columns.document(texts, f"row {row}"), row
        start = end


def _arrow_batches(file: ByteFile) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    is_file = file.read(6) == b"ARROW1"
    file.seek(0)
    if not is_file:
        stream = pa.ipc.open_stream(file)
        return stream.schema, iter(stream)
    reader = pa.ipc.open_file(file)
    return reader.schema, (reader.get_batch(i) for i in range(reader.num_record_batches))


def _bytes_of(column: pa.Array | pa.ChunkedArray) -> list[bytes | None]:
    if isinstance(column, pa.ChunkedArray):
        return [value for chunk in column.chunks for value in _bytes_of(chunk)]
    if pa.types.is_null(column.type):
        return [None] * len(column)
    if pa.types.is_dictionary(column.type):
        return _bytes_of(_as_bytes(column.dictionary).take(column.indices))
    values: list[bytes | None] = _as_bytes(column).to_pylist()
    return values


def _as_bytes(column: pa.Array) -> pa.Array:
    """The same memory without the promise that it is Unicode; offsets that lie outside of it raise."""
    if pa.types.is_null(column.type):
        return column
    column = column.view(_BYTES.get(column.type, column.type))
    column.validate(full=True)
    return column


def _check_columns(schema: pa.Schema, columns: Columns) -> None:
    columns.require(schema.names)
    for key, name in zip(("text_column", "prompt_column"), columns.names, strict=False):
        kind = schema.field(name).type
        inner = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not any(is_text(inner) for is_text in _TEXT):
            raise DataError(f"column {name!r} holds {kind}, not text: change {key}")


_TEXT = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
    pa.types.is_null,
)
"""Types that are read."""

_BYTES = {
    pa.string(): pa.binary(),
    pa.large_string(): pa.large_binary(),
    pa.string_view(): pa.binary_view(),
}


def _damaged(error: Exception) -> Exception:
    if isinstance(error, OSError) and error.errno is not None:
        return error  # of the disk
    return DataError(f"cannot be read: {' '.join(str(error).split())[:200]}; make or fetch the file again")
