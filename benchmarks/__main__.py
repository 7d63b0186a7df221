"""Run every benchmark, one process after the other, and write RESULTS.md and results.json beside this file.

    python -m benchmarks [--quick] [--only NAME ...]

A process each, so that none inherits another's memory, caches or threads.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine
from benchmarks.report import render


BENCHMARKS = ("fused_loss", "train_step", "methods", "cache", "scaling")
FOLDER = Path(__file__).parent


def run(name: str, options: Sequence[str]) -> dict[str, Any] | None:
    """Run one benchmark, passing its output on; what its last line says, None if it failed."""
    print(f"\n== {name}", flush=True)
    command = [sys.executable, "-m", f"benchmarks.{name}", *options]
    last = ""
    with subprocess.Popen(command, cwd=FOLDER.parent, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line
    if process.returncode != 0:
        print(f"{name} failed with exit code {process.returncode}", flush=True)
        return None
    figures: dict[str, Any] = json.loads(last)
    return figures


def main() -> int:
    """Run all; 1 if one failed."""
    parser = argparse.ArgumentParser(description="Run every benchmark and write RESULTS.md and results.json.")
    parser.add_argument("--quick", action="store_true", help="within five minutes; RESULTS.md stays as it is")
    parser.add_argument(
        "--only", choices=BENCHMARKS, nargs="+", help="measure these again, keep the others' figures"
    )
    options = parser.parse_args()
    flags = ["--quick"] if options.quick else []
    results: dict[str, Any] = json.loads((FOLDER / "results.json").read_text()) if options.only else {}
    results["machine"] = describe_machine()
    for name in options.only or BENCHMARKS:
        results[name] = run(name, flags)
    if options.quick:
        print("\n" + render(results))
    else:
        (FOLDER / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        (FOLDER / "RESULTS.md").write_text(render(results))
        print(f"wrote {FOLDER.name}/RESULTS.md and {FOLDER.name}/results.json")
    return int(any(results[name] is None for name in BENCHMARKS if name in results))


if __name__ == "__main__":
    sys.exit(main())
