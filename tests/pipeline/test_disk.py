"""A disk that refuses to take more: one line, exit 74, nothing half-written, and the same command goes on."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.runs import write_recipe


def train(recipe: Path, folder: Path, *, max_file_bytes: int | None = None) -> subprocess.CompletedProcess[str]:
    """`collegium train` in a process whose files may not grow beyond a size."""

    def limit() -> None:
        if max_file_bytes is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that the write fails, not the process
            resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes))

    return subprocess.run(
        [sys.executable, "-m", "collegium", "train", str(recipe)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=limit,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("max_file_bytes", [2_000, 30_000, 80_000])
def test_a_file_that_cannot_grow(tmp_path, model_folder, max_file_bytes):
    """In the prepared text or the recipe, in a checkpoint's weights, or in its optimizer state and the student."""
    recipe = write_recipe(tmp_path / "files", model_folder)
    failed = train(recipe, tmp_path, max_file_bytes=max_file_bytes)
    assert failed.returncode == 74, failed.stderr
    assert "Traceback" not in failed.stderr
    (line,) = [line for line in failed.stderr.splitlines() if line.startswith("collegium: ")]
    assert "File too large" in line
    left = [
        path for path in (tmp_path / "runs").rglob("*") if ".writing" in path.name or path.name.endswith(".tmp")
    ]
    assert left == []
    assert not (tmp_path / "runs" / "pico" / "student").exists()
    again = train(recipe, tmp_path)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "runs" / "pico" / "student" / "model.safetensors").exists()
