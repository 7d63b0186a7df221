"""Processes started by torchrun share the work of a cache, and make the same one."""

import os
import subprocess
import sys
from pathlib import Path

from tests.support.runs import write_recipe


def build(recipe: Path, directory: Path, num_processes: int) -> dict[str, bytes]:
    """Files of a cache made by so many processes."""
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}"]
    command = [sys.executable, *(launch if num_processes > 1 else []), "-m", "collegium", "cache", str(recipe)]
    changes = ["teachers.0.cached=true", "cache.rows_per_shard=3", f"cache.directory={directory}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLLEGIUM_CACHE": str(recipe.parent / "cache")}
    done = subprocess.run([*command, *changes], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-8000:]
    assert done.stderr.count("bytes a token") == 1, "one process speaks"
    files = {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}
    return {name: content for name, content in files.items() if not name.endswith("/.lock")}


def test_three_processes_make_the_cache_of_one(tmp_path, model_folder):
    recipe = write_recipe(tmp_path / "files", model_folder)
    alone = build(recipe, tmp_path / "alone", 1)
    together = build(recipe, tmp_path / "together", 3)
    assert sum(name.endswith(".parquet") for name in alone) > 4
    assert alone == together
