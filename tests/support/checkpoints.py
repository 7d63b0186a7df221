"""Checkpoints as earlier or other versions would have written them."""

import json
from pathlib import Path
from typing import Any

from collegium.training.checkpoint_files import FORMAT, digests_of, manifest_text


def seal(path: Path, number: int = FORMAT) -> None:
    """Write the manifest of a checkpoint again, after a change that is not meant as damage."""
    (path / "manifest.json").unlink()
    (path / "manifest.json").write_text(manifest_text(int(path.name.split("-")[1]), digests_of(path), number))


def change(path: Path, name: str, **values: Any) -> None:
    """Put other values into a JSON file of a checkpoint."""
    file = path / f"{name}.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}, sort_keys=True))
    seal(path)


def as_format_1(path: Path) -> None:
    """Take out of a checkpoint what the first format had not."""
    (path / "origin.json").unlink()
    optimizer = path / "optimizer.json"
    optimizer.write_text(json.dumps(json.loads(optimizer.read_text())["groups"], sort_keys=True))
    seal(path, 1)
