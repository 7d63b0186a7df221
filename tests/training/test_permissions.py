"""Whoever may read the user's files may read what a run leaves, though libraries write for the owner alone."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

import collegium
from collegium.base.durable import open_to_umask
from tests.support.runs import trainer_of


pytestmark = pytest.mark.skipif(os.name != "posix", reason="a umask is POSIX's")

SOURCES = Path(collegium.__file__).parent


@pytest.fixture(params=[0o002, 0o027])
def umask(request) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def assert_follows(folder: Path, umask: int) -> None:
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*")}
    assert len(modes) > 3
    for path, mode in modes.items():
        assert mode == (0o777 if path.is_dir() else 0o666) & ~umask, f"{path}: {mode:o}"


def test_checkpoints_and_students(tmp_path, umask):
    trainer = trainer_of(tmp_path / "run", num_teachers=1, max_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    trainer.save_model(str(tmp_path / "run" / "student"))
    assert_follows(tmp_path / "run", umask)


def test_a_program_stays_one_and_a_shared_folder_too(tmp_path, umask):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o2700)
    (tmp_path / "run.sh").touch()
    (tmp_path / "run.sh").chmod(0o700)
    (tmp_path / "link").symlink_to("nowhere")
    open_to_umask(tmp_path)
    assert stat.S_IMODE((tmp_path / "shared").stat().st_mode) == 0o2000 | 0o777 & ~umask
    assert stat.S_IMODE((tmp_path / "run.sh").stat().st_mode) == 0o666 & ~umask | 0o100


def test_whoever_lets_a_library_write_a_folder_opens_it():
    """Exports are written in several modules and opened in one; the paper's models have no weights."""
    writes = ("save_file(", ".save_pretrained(", "mkdtemp(")
    found = {
        str(path.relative_to(SOURCES))
        for path in SOURCES.rglob("*.py")
        if any(word in path.read_text(encoding="utf-8") for word in writes)
    }
    opened = {name for name in found if "open_to_umask(" in (SOURCES / name).read_text(encoding="utf-8")}
    assert "open_to_umask(" in (SOURCES / "export/artefact.py").read_text(encoding="utf-8")
    elsewhere = {"export/formats.py", "export/int8.py", "paper/preparation.py"}
    assert found - opened == elsewhere
