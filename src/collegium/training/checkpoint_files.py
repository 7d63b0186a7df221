"""Which folder is a checkpoint of ours, and whether each of its files is as it was written.

A manifest names every file with size and SHA-256, carries the number of the format and a hash of itself. What is
damaged may be passed over for an older checkpoint. What another program or a newer version wrote never is: it
would be taken for damage, and deleted for being old.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from collegium.base.digest import json_digest
from collegium.base.durable import file_digest
from collegium.base.errors import DataError


FORMAT = 2
"""Number of the format: 1 said nothing of what the run was made from."""

MANIFEST = "manifest.json"

FOLDER = re.compile(r"checkpoint-(\d+)")

_OURS_ALONE = {"optimizer.safetensors", "random.safetensors"}
"""Files that no other program writes: a folder with one of them is ours, also without a manifest."""

_OF_TRANSFORMERS = re.compile(r"(optimizer|scheduler|scaler)\.(pt|bin)|training_args\.bin|rng_state.*\.pth")


class ForeignCheckpointError(DataError):
    """A folder that is no checkpoint of ours, or of a newer version: nothing to pass over, or to delete."""


def verify(path: Path) -> None:
    """Compare every file with the manifest.

    Raises:
        ForeignCheckpointError: it is no checkpoint that this version reads.
        DataError: names the first file that is missing or changed.
    """
    require_ours(path)
    expected = _read_manifest(path)
    # A file too many is refused as well: nobody knows who wrote it, or whether it belongs here.
    present = {file.name for file in path.iterdir()} - {MANIFEST}
    if present != set(expected):
        raise DataError(f"{path}: holds {sorted(present)}, the manifest names {sorted(expected)}")
    for name, (size, digest) in expected.items():
        file = path / name
        # The size first: it is known at once, and most damage is a file that was cut off.
        if file.stat().st_size != size or file_digest(file) != digest:
            raise DataError(f"{path}: {name} is not as it was written (size or SHA-256 differs)")


def require_ours(path: Path) -> None:
    """See what kind of folder it is, by the names of its files and by its manifest.

    Raises:
        ForeignCheckpointError: it is no checkpoint that this version reads, and says what it is.
    """
    if not path.is_dir():
        what = "is a file, and a checkpoint is a folder" if path.exists() else "there is no such folder"
        raise ForeignCheckpointError(f"{path}: {what}; give a folder checkpoint-N, or True for the newest one")
    names = {file.name for file in path.iterdir()}
    if MANIFEST in names:
        _require_known(path)
    elif names and not names & _OURS_ALONE:
        raise ForeignCheckpointError(f"{path}: is no checkpoint of collegium: {_kind_of(path, names)}")


def read_json(path: Path, name: str) -> Any:
    """Content of one JSON file of a checkpoint."""
    return json.loads((path / f"{name}.json").read_text(encoding="utf-8"))


def has_json(path: Path, name: str) -> bool:
    """Whether a checkpoint has a JSON file of this name, as those of the first format have fewer."""
    return (path / f"{name}.json").is_file()


def manifest_text(step: int, files: Mapping[str, Any], number: int = FORMAT) -> str:
    """The manifest with its own hash, in the one form that is accepted."""
    content = {"files": files, "step": step, **({} if number == 1 else {"format": number})}
    return json.dumps({**content, "sha256": json_digest(content)}, sort_keys=True)


def digests_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of each file, as they lie on disk."""
    return {
        file.name: {"bytes": file.stat().st_size, "sha256": file_digest(file)} for file in sorted(folder.iterdir())
    }


def _kind_of(path: Path, names: set[str]) -> str:
    """In words, what a folder without a manifest is, and what to do with it."""
    inner = sorted(name for name in names if name.startswith("checkpoint"))
    if inner:
        return f"it holds {', '.join(inner[:3])}; give the checkpoint-N that you mean"
    if any(_OF_TRANSFORMERS.fullmatch(name) for name in names) or "trainer_state.json" in names:
        return (
            "transformers' own Trainer wrote it, whose pickles are not read; to begin with its weights, give the "
            "folder as the student and another output_dir"
        )
    if names & {"config.json", "adapter_config.json"}:
        return "it holds a model; to begin with its weights, give the folder as the student"
    return f"it has no {MANIFEST} but {', '.join(sorted(names)[:3])}; give a folder checkpoint-N"


def _require_known(path: Path) -> None:
    """Refuse a manifest of something else, and a whole one of a newer format; a damaged one is not judged."""
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        number = manifest.get("format", 1)
        is_other = "step" not in manifest and "schema" in manifest
        plain = {key: value for key, value in manifest.items() if key != "sha256"}
        is_newer = isinstance(number, int) and number > FORMAT and manifest.get("sha256") == json_digest(plain)
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return
    if is_other:
        raise ForeignCheckpointError(
            f"{path}: is no checkpoint of collegium: its {MANIFEST} is of prepared text or of a cache; "
            "give a folder checkpoint-N"
        )
    if is_newer:
        raise ForeignCheckpointError(
            f"{path}: was written by a newer version: its format is {number}, this version reads up to {FORMAT}; "
            "update collegium, or start again in another output_dir"
        )


def _read_manifest(path: Path) -> dict[str, tuple[int, str]]:
    """Size and digest of each file."""
    try:
        text = (path / MANIFEST).read_text(encoding="utf-8")
        manifest = json.loads(text)
        number = int(manifest.get("format", 1))
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()}
        step = manifest["step"]
        is_as_written = text == manifest_text(step, manifest["files"], number)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: {MANIFEST} cannot be read ({error})") from None
    if not is_as_written:
        raise DataError(f"{path}: {MANIFEST} is not as it was written (its own SHA-256 differs)")
    name = FOLDER.fullmatch(path.name)
    if name is not None and int(name.group(1)) != step:
        raise DataError(
            f"{path}: is the checkpoint of step {step} under another name; rename it to checkpoint-{step}"
        )
    return expected
