"""What `collegium preflight` says a run will take, against what the run takes.

A student and two teachers of half a million parameters over text that is made here, or over files that are
given; each command in a process of its own, as a user runs it. Peak memory is the largest resident set that the
kernel saw; disk is what lies in the run folder, the caches and the prepared text afterwards.

    python -m benchmarks.estimate [--rounds 3] [--text FILE ...] [--cached] [--steps 200]
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from collegium.paper.preparation import byte_level_bpe


WORDS = 2000
RECIPE = """
name: measured
output_dir: {folder}/run
student: {{kind: config, model: {folder}/base}}
teachers:
  - {{name: one, model: {folder}/one, cached: {cached}}}
  - {{name: two, model: {folder}/two, cached: {cached}}}
cache: {{directory: {folder}/caches}}
data:
  directory: {folder}/text
  block_size: 128
  held_out_documents: 64
  sources:
{sources}
objective: {{kd_weight: 0.5}}
training: {{max_steps: {steps}, batch_size: 16, learning_rate: 3e-3, save_every: {save_every}, log_every: 10}}
"""


def make_text(path: Path, seed: int, num_documents: int = 3000) -> Path:
    """Documents of words that were made up, one a line, the common ones more often."""
    draw = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(WORDS)]
    weights = [1 / (rank + 1) for rank in range(WORDS)]
    lines = (" ".join(draw.choices(words, weights, k=draw.randint(20, 120))) for _ in range(num_documents))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def make_models(folder: Path, texts: Sequence[Path]) -> None:
    """A tokenizer, the student's configuration, and two teachers with random weights."""
    fast = byte_level_bpe([text.read_text(encoding="utf-8")[:200_000] for text in texts], 1024)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
    )
    for name in ("base", "one", "two"):
        fast.save_pretrained(folder / name)
        config.save_pretrained(folder / name)
    for seed, name in enumerate(("one", "two"), 1):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder / name)


def write_recipe(folder: Path, texts: Sequence[Path], *, cached: bool, steps: int) -> Path:
    """The recipe of one round."""
    sources = "\n".join(f"    - {{kind: files, name: text{i}, path: {text}}}" for i, text in enumerate(texts))
    path = folder / "recipe.yaml"
    content = {"folder": folder, "sources": sources, "cached": str(cached).lower(), "steps": steps}
    path.write_text(RECIPE.format(**content, save_every=max(1, steps // 4)), encoding="utf-8")
    return path


def collegium(*arguments: str) -> tuple[str, float, int]:
    """Standard output of a command, its seconds and its peak memory in bytes."""
    start = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-m", "collegium", *arguments], stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        out = run.stdout.read()
        _, status, usage = os.wait4(run.pid, 0)
        run.returncode = os.waitstatus_to_exitcode(status)
    if run.returncode:
        raise SystemExit(f"collegium {' '.join(arguments)} ended with {run.returncode}")
    return out, time.monotonic() - start, usage.ru_maxrss * 1024


def folder_bytes(*folders: Path) -> int:
    """Of all files below."""
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())


def one_round(texts: Sequence[Path], *, cached: bool, steps: int) -> dict[str, Any]:
    """Estimate a run, then run it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = texts or [make_text(folder / f"{seed}.txt", seed) for seed in (1, 2)]
        make_models(folder, texts)
        recipe = str(write_recipe(folder, texts, cached=cached, steps=steps))
        collegium("prepare", recipe)
        out, preflight_seconds, _ = collegium("preflight", recipe, "--json")
        estimate = json.loads(out)["estimate"]
        remains = (folder / "run").exists() or any(folder.glob(".run*"))
        taken = [collegium("cache", recipe)] if cached else []
        taken.append(collegium("train", recipe, "--json"))
        figures = {
            "seconds": (estimate["total_seconds"], sum(seconds for _, seconds, _ in taken)),
            "memory_mb": (estimate["memory_bytes"] / 1e6, taken[-1][2] / 1e6),
            "disk_mb": (
                estimate["total_disk_bytes"] / 1e6,
                folder_bytes(folder / "run", folder / "text", folder / "caches") / 1e6,
            ),
        }
        named = {
            key: {"estimate": told, "actual": found, "error": told / found - 1}
            for key, (told, found) in figures.items()
        }
        return {
            **named,
            "preflight_seconds": preflight_seconds,
            "something_remains": remains,
            "parts": estimate["seconds"],
        }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print; the last line is JSON."""
    parser = argparse.ArgumentParser(description="Estimates of a run against the run.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--cached", action="store_true", help="teachers from caches that are not built yet")
    parser.add_argument("--text", type=Path, nargs="+", default=[], help="text files, a document a line")
    parser.add_argument("--quick", action="store_true", help="one round of 30 steps")
    options = parser.parse_args(arguments)
    rounds, steps = (1, 30) if options.quick else (options.rounds, options.steps)
    results = []
    for number in range(rounds):
        found = one_round(options.text, cached=options.cached, steps=steps)
        results.append(found)
        for key in ("seconds", "memory_mb", "disk_mb"):
            row = found[key]
            print(
                f"{number} {key:10} {row['estimate']:9.1f} told {row['actual']:9.1f} found {row['error']:+.1%}",
                flush=True,
            )
        print(f"{number} preflight took {found['preflight_seconds']:.0f} s; parts {found['parts']}", flush=True)
    print(json.dumps({"rounds": results, "steps": steps, "cached": options.cached}))


if __name__ == "__main__":
    main()
