"""The place of a cache: a folder on disk, or any URL that fsspec knows.

On disk a file is written as `collegium.base.durable` does; elsewhere an object is put whole, which object
stores make visible at once or not at all. Nothing is ever renamed or changed in place.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import fsspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from collegium.base.durable import write_bytes
from collegium.base.errors import DataError


@dataclass(frozen=True)
class Folder:
    """A folder of files with flat or one-level names.

    Attributes:
        filesystem: File system of fsspec.
        root: Path in it.
    """

    filesystem: Any
    root: str

    @classmethod
    def at(cls, location: str | Path) -> "Folder":
        """The folder at a path or URL; it need not exist.

        Raises:
            DataError: no such file system is known or installed.
        """
        try:
            filesystem, root = fsspec.core.url_to_fs(str(location))
        except (ImportError, ValueError) as error:
            raise DataError(
                f"{location}: cannot be reached ({error}); install that package, or use a path"
            ) from error
        if isinstance(filesystem, LocalFileSystem) and Path(root).is_file():
            raise DataError(f"{location}: is a file; give the folder of a cache")
        return cls(filesystem, root.rstrip("/"))

    @property
    def local(self) -> Path | None:
        """The folder on disk, or None."""
        return Path(self.root) if isinstance(self.filesystem, LocalFileSystem) else None

    def path(self, name: str) -> str:
        """Path of a file, for messages too."""
        return f"{self.root}/{name}" if self.local else f"{self._protocol}://{self.root.lstrip('/')}/{name}"

    @property
    def location(self) -> str:
        """The folder itself, for messages and commands."""
        return self.path("").rstrip("/")

    @property
    def _protocol(self) -> str:
        protocol = self.filesystem.protocol
        return str(protocol if isinstance(protocol, str) else protocol[0])

    def write(self, name: str, content: bytes | memoryview) -> None:
        """Write a file, whole or not at all."""
        if self.local is not None:
            write_bytes(self.local / name, content)
        else:
            self.filesystem.pipe_file(f"{self.root}/{name}", bytes(content))

    def read(self, name: str) -> bytes:
        """All of a file."""
        return cast(bytes, self.filesystem.cat_file(f"{self.root}/{name}"))

    def open(self, name: str) -> Any:
        """A file to read in ranges: by pread on disk, by ranged requests elsewhere.

        Not mapped into memory: a file that is cut while it is mapped kills the process.
        """
        if self.local is not None:
            return pa.OSFile(str(self.local / name))
        return self.filesystem.open(f"{self.root}/{name}", "rb", cache_type="none")

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if it is not there."""
        try:
            return int(self.filesystem.size(f"{self.root}/{name}"))
        except FileNotFoundError:
            return None

    def digest(self, name: str) -> str:
        """SHA-256 of a file, in hexadecimal."""
        state = hashlib.sha256()
        with self.open(name) as file:
            while block := file.read(2**20):
                state.update(block)
        return state.hexdigest()

    def names(self) -> list[str]:
        """Every file, hidden ones too, relative to the folder."""
        self.filesystem.invalidate_cache()
        found = self.filesystem.find(self.root) if self.filesystem.exists(self.root) else []
        return sorted(path.removeprefix(self.root).lstrip("/") for path in found)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        try:
            self.filesystem.rm_file(f"{self.root}/{name}")
        except FileNotFoundError:
            return
