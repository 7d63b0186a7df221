"""A finished run that was never trained: every section that a page can show, in words of one's choice."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from collegium.report.evaluation import SCHEMA_VERSION


RECIPE = """
name: made-up
student: {kind: pretrained, model: MODEL}
teachers:
  - {name: one, model: org/one}
  - {name: two, model: org/two}
data:
  sources: [{kind: files, name: cats, path: cats.txt}, {kind: files, name: dogs, path: dogs.txt}]
training: {max_steps: 10}
"""

Word = Callable[[str], str]


def interval(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


def domain(figures: dict[str, Any]) -> dict[str, Any]:
    bins = {"tokens": [0] * 5 + [100, 200, 300] + [0] * 7, "gaps": [0.0] * 5 + [0.1, -0.05, 0.02] + [0.0] * 7}
    return {"documents": 3, "tokens": 600, "bytes": 2400, "figures": intervals(figures), "confidence_bins": bins}


def intervals(figures: dict[str, Any]) -> dict[str, Any]:
    """Every number with an interval; those of teachers lie deeper."""
    return {
        name: intervals(value) if isinstance(value, dict) else interval(value) for name, value in figures.items()
    }


def passage(word: Word) -> dict[str, Any]:
    view = {
        "probability": [0.5, 0.25, 0.05, 0.001],
        "alternatives": [[[word("the"), 0.5], [word("a"), 0.2]], [[word(" dog"), 0.3]], [[word(" is"), 0.4]], []],
    }
    one = {"weight": [0.9, 0.2, 0.5, 0.0], "entropy": [0.1, 1.0, 2.0, None]}
    two = {"weight": [0.1, 0.8, 0.5, 0.0], "entropy": [4.0, 0.2, 2.5, None]}
    return {
        "document": 4,
        "lead": word("lead"),
        "text": [word("the"), word(" cat\n"), word(" sat"), ""],
        "conflict": [0.01, 0.2, 0.5, 0.0],
        "student": view,
        "target": view,
        "teachers": {"one": view | one, "two": view | two},
    }


def evaluation(word: Word = str) -> dict[str, Any]:
    """Content of `evaluation.json`; every text goes through `word`."""
    figures: dict[str, Any] = {
        "nll": 3.0,
        "perplexity": 20.0,
        "accuracy": 0.4,
        "bits_per_byte": 1.1,
        "ece": 0.05,
        "kl/common": 0.3,
        "kl/own": 0.2,
        "teachers": {"one": {"kl": 0.4}, "two": {"kl": 0.5}},
    }
    teachers = {
        name: {"nll": nll, "weight_nll": nll, "entropy": nll - 0.8, "weight": 0.5}
        for name, nll in {"one": 2.6, "two": 2.9}.items()
    }
    fused = {"rule/fused/nll": 2.5, "conflict": 0.2, "effective_teachers": 1.7, "teachers": teachers}
    domains = (word("cats"), word("dogs"))
    gap = {"all": {**interval(-1.0), "p_value": 0.001}}
    steps = {"step": [1, 5, 10], "value": [4.0, 3.5, 3.0]}
    names = ("loss", "kd_loss", "cross_entropy", "conflict", "teacher/one/weight", "teacher/two/weight")
    return {
        "schema_version": SCHEMA_VERSION,
        "recipe": "0123456789abcdef",
        "model": word("student"),
        "held_out": {"context_length": 32, "bos": word("none"), "predicted_tokens": 1200},
        "confidence": 0.95,
        "domains": {name: domain(figures) for name in domains},
        "mean": dict(figures),
        "documents": {name: {"tokens": [200, 300, 100], "nll": [600.0, 900.0, 300.0]} for name in domains},
        "before": {
            "domains": {name: domain({"nll": 5.0}) for name in domains},
            "mean": {"nll": 5.0, "perplexity": 148.4},
        },
        "teachers": {"domains": {name: domain(fused) for name in domains}, "mean": dict(fused)},
        "differences": {"before": gap, "fused": gap, "teachers": {"one": gap}},
        "passages": {name: passage(word) for name in domains},
        "continuations": {
            name: {
                "prompt": word("once"),
                "document": word("upon"),
                "teachers": {"one": word("a"), word("x"): word("time")},
                "student": word("there"),
            }
            for name in domains
        },
        "curves": {
            **{f"train/{name}": steps for name in names},
            "eval/nll": {"step": [5, 10], "value": [3.5, 3.0]},
        },
        "generation": {
            "prompt_tokens": 4,
            "new_tokens": 8,
            "teacher": word("one and two"),
            "signatures": {},
            "domains": {
                name: {"documents": 3, "figures": {"bleu_reference": interval(2.0)}} for name in (*domains, "all")
            },
        },
        "tasks": {
            word("mood"): {
                "task": "sentiment",
                "items": 50,
                "primary": "accuracy",
                "figures": {"accuracy": interval(0.75), "f1": interval(0.5)},
                "baselines": {"random": 0.5, "majority": 0.52},
                "teachers": {"one": {"accuracy": interval(0.8)}},
            }
        },
        "cost": {
            "plan": {
                "total_seconds": 100.0,
                "memory_bytes": 10**9,
                "disk_bytes": {"text": 10**6},
                "notes": [word("note")],
            },
            "actual": {
                "seconds": {"training": 90.0, "evaluation": 15.0},
                "memory_bytes": 11 * 10**8,
                "device_memory_bytes": None,
                "disk_bytes": {"text": 10**6},
                "resumed": False,
            },
        },
        "lineage": {
            "teachers": [
                {
                    "name": word("one"),
                    "model": word("org/one"),
                    "licence": word("apache-2.0"),
                    "licence_from": word("recipe"),
                    "adapter": {"model": word("adapter")},
                    "weight": {"mean": 0.5},
                }
            ],
            "student": {"kind": word("pretrained"), "model": word("MODEL"), "layers_kept": [0, 1]},
            "data": [{"name": word("cats"), "licence": None, "path": word("cats.txt"), "train_tokens": 100}],
        },
    }


def write_run(folder: Path, word: Word = str, **changes: Any) -> Path:
    """A run folder with it."""
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(RECIPE.replace("MODEL", json.dumps(word("org/base"))), encoding="utf-8")
    content = {**evaluation(word), **changes}
    (folder / "evaluation.json").write_text(json.dumps(content), encoding="utf-8")
    return folder
