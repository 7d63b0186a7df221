"""Opens files through what they are compressed with, which their first bytes say and not their names.

Nothing is unpacked to disk, and memory is bounded: a stream is read as far as it is asked for, and a file that
wants more than 256 MiB to be unpacked is refused. Going back in a compressed file reads it again from the start.
"""

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Mapping
from pathlib import Path

from collegium.base.errors import DataError


ByteFile = io.BufferedIOBase

COMPRESSIONS: Mapping[str, tuple[str, tuple[bytes, ...]]] = {
    "gzip": (".gz", (b"\x1f\x8b",)),
    "bzip2": (".bz2", (b"BZh",)),
    "xz": (".xz", (b"\xfd7zXZ\0",)),
    "zstd": (".zst", (b"\x28\xb5\x2f\xfd", *(bytes([low, 0x2A, 0x4D, 0x18]) for low in range(0x50, 0x60)))),
    "lz4": (".lz4", (b"\x04\x22\x4d\x18",)),
}
"""Name -> ending of a file's name, and with what its content begins."""

_MAX_MEMORY = 256 * 2**20
_CHUNK_SIZE = 64 * 2**10
_SAMPLE_SIZE = 4 * 2**10
_TABLES = (b"PAR1", b"ARROW1")


def compression_of(head: bytes) -> str | None:
    """The compression of content that begins with `head`, if there is one."""
    for name, (_, beginnings) in COMPRESSIONS.items():
        if head.startswith(beginnings) and (name != "bzip2" or head[3:4].isdigit()):
            return name
    return None


def file_compression(path: Path) -> str | None:
    """The compression of a file by its content; by its name if the content is nothing that could be read."""
    with path.open("rb") as file:
        head = file.read(_SAMPLE_SIZE)
    found = compression_of(head)
    return found if found or _is_readable(head) else without_compression(path.name)[1]


def _is_readable(head: bytes) -> bool:
    """Tell whether content is text or a table as it stands, whatever its file is called."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return head.startswith(_TABLES)
    return b"\0" not in head or head.startswith(_TABLES)


def without_compression(name: str) -> tuple[str, str | None]:
    """The name of a file without the ending of a compression, and which that is."""
    for compression, (ending, _) in COMPRESSIONS.items():
        if name.lower().endswith(ending):
            return name[: -len(ending)], compression
    return name, None


def open_bytes(path: Path) -> ByteFile:
    """Open for reading, through its compression if there is one.

    Raises:
        DataError: it takes too much memory to unpack.
    """
    match file_compression(path):
        case "gzip":
            return gzip.open(path)
        case "bzip2":
            return bz2.open(path)
        case "xz":
            _check_xz(path)
            return lzma.open(path)
        case "zstd" | "lz4" as codec:
            return io.BufferedReader(_Unpacked(path, codec), _CHUNK_SIZE)
        case _:
            return path.open("rb")


def read_head(path: Path, size: int) -> bytes:
    """The first `size` bytes of the content; fewer if the file ends, or is damaged, before."""
    with open_bytes(path) as file:
        return read_available(file, size, quietly=True)


def read_available(file: ByteFile, size: int, *, quietly: bool = False) -> bytes:
    """At most `size` bytes; what lies before the damage of a compressed file is still returned.

    Args:
        file: Where to read on.
        size: Bytes.
        quietly: Return nothing, and raise nothing, where the damage begins at once.
    """
    data = b""
    try:
        while len(data) < size and (chunk := file.read1(size - len(data))):
            data += chunk
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        if not data and not (quietly and damage_of(error)):
            raise
    return data


def damage_of(error: Exception) -> str | None:
    """What an error says of a compressed file: `truncated` or `damaged`; None if it is another error."""
    if isinstance(error, EOFError):
        return "truncated"
    is_damage = isinstance(error, zlib.error | lzma.LZMAError)
    # Decompressors raise OSError without a number, and the system never does.
    return "damaged" if is_damage or (isinstance(error, OSError) and error.errno is None) else None


def _check_xz(path: Path) -> None:
    decompressor = lzma.LZMADecompressor(memlimit=_MAX_MEMORY)
    try:
        with path.open("rb") as file:
            decompressor.decompress(file.read(_CHUNK_SIZE), max_length=1)
    except lzma.LZMAError as error:
        if "limit" in str(error).lower():
            raise DataError(
                f"{path}: takes more than {_MAX_MEMORY // 2**20} MiB to unpack: compress it with a lower setting"
            ) from None


class _Unpacked(io.RawIOBase):
    """A file that pyarrow unpacks, with places to go to."""

    def __init__(self, path: Path, codec: str) -> None:
        self._path = path
        self._codec = codec
        self._open()

    def _open(self) -> None:
        import pyarrow as pa

        self._stream = pa.CompressedInputStream(pa.OSFile(str(self._path)), self._codec)
        self._place = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """By reading again."""
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Read into a buffer.

        Raises:
            EOFError: the file is truncated.
            OSError: it is damaged.
        """
        try:
            data = self._stream.read(len(buffer))
        except OSError as error:
            if "truncated" in str(error).lower():
                raise EOFError(str(error)) from None
            raise
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place."""
        if whence == io.SEEK_END:
            while self.read(_CHUNK_SIZE):
                pass
        target = offset if whence == io.SEEK_SET else self._place + offset
        if target < self._place:
            self._stream.close()
            self._open()
        while self._place < target and self.read(min(_CHUNK_SIZE, target - self._place)):
            pass
        return self._place

    def tell(self) -> int:
        """The place."""
        return self._place

    def close(self) -> None:
        """Close the file."""
        if not self.closed:
            self._stream.close()
        super().close()
