"""Teachers of code and encyclopedia, then one of stories: what does the student forget?

Models of half a million parameters over a vocabulary of 1,024 tokens, made here. A full run takes some ten
minutes on one core; `--steps 5` only shows that everything works. Results go to `results.json` beside this
file unless `--output` says otherwise. Needs the text of the package `exllamav3`; run it from a folder in
which `runs/` may be written:

    python experiments/incremental/run.py
"""

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import LlamaConfig

from collegium.base.references import resolve_reference
from collegium.paper.preparation import byte_level_bpe
from collegium.pipeline.cache import cache
from collegium.pipeline.train import train
from collegium.recipe.file import load_recipe
from collegium.report.evaluation_file import as_content


HERE = Path(__file__).parent
RUNS = Path("runs/incremental")
TEXT = "package:exllamav3/conversion/standard_cal_data"
SOURCES = {
    "code": {"path": f"{TEXT}/code.utf8", "documents": "separator", "separator": r"\n\n\n+|// ===== END =====\s+"},
    "wiki": {"path": f"{TEXT}/wiki.utf8"},
    "stories": {"path": f"{TEXT}/tiny.utf8", "documents": "separator", "separator": r"<\|endoftext\|>\s*"},
}
NEW = {"name": "stories", "model": str(RUNS / "teacher-stories/student")}
SELF = {"name": "previous", "model": str(RUNS / "first/student")}
OLD = [
    {"kind": "cached", "name": name, "path": str(RUNS / "caches" / name), "domains": [name]}
    for name in ("code", "wiki")
]
VARIANTS: Mapping[str, list[dict[str, Any]]] = {
    "naive": [{**NEW, "domains": ["stories"]}],
    "self on new text": [{**NEW, "domains": ["stories"]}, {**SELF, "domains": ["stories"]}],
    "self on external text": [{**NEW, "domains": ["stories"]}, {**SELF, "domains": ["web"]}],
    "SE2D": [{**NEW, "domains": ["stories", "web"]}, {**SELF, "domains": ["web"]}],
    "replay": [{**NEW, "domains": ["stories"]}, *OLD],
}
"""Teachers of the second run. SE2D as in its code: the new teacher on all unlabelled text, the former student on
what is not of the new teacher's domain; old text is not there in its setting, so both are left out on it."""


def make_base(folder: Path, vocab_size: int = 1024) -> None:
    """A tokenizer made of some of the text, and the configuration of all models."""
    if (folder / "config.json").exists():
        return
    texts = [
        Path(resolve_reference(source["path"])).read_text(encoding="utf-8")[:200_000]
        for source in SOURCES.values()
    ]
    fast = byte_level_bpe(texts, vocab_size)
    fast.save_pretrained(folder)
    LlamaConfig(
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
    ).save_pretrained(folder)


def run(recipe: str, name: str, **changes: Any) -> dict[str, Any]:
    """Train one student, or read what it came to."""
    overrides = [f"{key.replace('__', '.')}={json.dumps(value)}" for key, value in changes.items()]
    folder = RUNS / name.replace(" ", "-")
    loaded = load_recipe(HERE / recipe, [*overrides, f"output_dir={folder}"])
    if loaded.teachers_to_cache:
        cache(loaded)
    return as_content(train(loaded))


def train_teachers(**changes: Any) -> dict[str, dict[str, Any]]:
    """One teacher of each domain; their evaluations."""
    results = {}
    for seed, (name, source) in enumerate(SOURCES.items()):
        data = [{"kind": "files", "name": name, **source}]
        results[name] = run("teacher.yaml", f"teacher-{name}", data__sources=data, seed=seed, **changes)
    return results


def second_runs(name: str, num_seeds: int, changes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One variant, once a seed."""
    return [
        summary(run("second.yaml", f"{name}-{seed}", teachers=VARIANTS[name], seed=seed, **changes))
        for seed in range(num_seeds)
    ]


def main() -> None:
    """All runs, one after another; a second call goes on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=1, help="seeds of the second run's order")
    parser.add_argument("--output", type=Path, default=HERE / "results.json")
    options = parser.parse_args()
    start, steps = time.monotonic(), {"training__max_steps": options.steps}
    if options.steps < 40:
        steps["training__warmup_steps"] = 0
    make_base(RUNS / "base")
    teachers = train_teachers(**steps)
    first = run("first.yaml", "first", **steps)
    results = {
        "steps": options.steps,
        "teachers": {name: nll_of(result) for name, result in teachers.items()},
        "first": nll_of(first),
        "second": {name: second_runs(name, options.seeds, steps) for name in VARIANTS},
    }
    results["seconds"] = round(time.monotonic() - start)
    options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for name, runs in results["second"].items():
        print(name, json.dumps(runs[0]["mean"]), flush=True)


def nll_of(result: Mapping[str, Any]) -> dict[str, float]:
    """Nats per token by domain."""
    return {name: round(domain["figures"]["nll"]["value"], 4) for name, domain in result["domains"].items()}


def summary(result: Mapping[str, Any]) -> dict[str, Any]:
    """Loss, forgetting, learning and transfer of one second run."""
    continual = result["continual"]
    return {"nll": nll_of(result), "domains": continual["domains"], "mean": continual["mean"]}


if __name__ == "__main__":
    main()
