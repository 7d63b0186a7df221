"""A lineage and an evaluation as a run writes them, made up: no model is needed to write a card."""

import copy
from pathlib import Path
from typing import Any

from collegium.report.card.render import render_card
from collegium.report.evaluation import SCHEMA_VERSION, Evaluation
from collegium.report.evaluation_file import evaluation_of, save_evaluation


def figure(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.5, "high": value + 0.5}


def teacher(name: str, **changes: Any) -> dict[str, Any]:
    about = {
        "name": name,
        "kind": "local",
        "model": f"someone/{name}",
        "origin": "hub",
        "revision": "0123456789abcdef0123456789abcdef01234567",
        "licence": "apache-2.0",
        "licence_from": "recipe",
        "adapter": None,
        "parameters": 1_000_000,
        "vocab_size": 260,
        "fingerprint": f"someone/{name}@0123/float32/abcd",
        "cached": False,
        "domains": ["web"],
        "weight": {"mean": 0.5, "last": 0.25},
    }
    return about | changes


def source(name: str, **changes: Any) -> dict[str, Any]:
    about = {
        "name": name,
        "kind": "hub",
        "task": None,
        "origin": "hub",
        "dataset": "allenai/c4",
        "config": "en",
        "split": "train",
        "revision": None,
        "path": None,
        "licence": "odc-by",
        "licence_from": "model card",
        "language": "en",
        "train_tokens": 1000,
        "held_out_documents": 4,
        "held_out_tokens": 100,
    }
    return about | changes


_LINEAGE: dict[str, Any] = {
    "schema": 1,
    "name": "made-up",
    "recipe": "0123456789abcdef",
    "teachers": [teacher("one"), teacher("two")],
    "student": {
        "kind": "pretrained",
        "model": "someone/small",
        "origin": "hub",
        "revision": None,
        "licence": "apache-2.0",
        "licence_from": "model card",
        "layers_kept": None,
        "pruned_to": None,
        "parameters": 500_000,
        "trained_parameters": None,
        "tokenizer": None,
        "vocab_size": 260,
    },
    "data": [source("web")],
    "training": {
        "steps": 4,
        "epochs": 1.0,
        "blocks": 40,
        "tokens": 1000,
        "predicted": 950,
        "domains": {"web": {"blocks": 40, "tokens": 1000, "predicted": 950}},
        "batch_size": 2,
        "gradient_accumulation": 1,
        "block_size": 32,
        "learning_rate": 0.01,
        "lr_scheduler": "cosine",
        "precision": "float32",
        "seed": 0,
        "method": None,
        "kd_weight": 0.9,
        "ce_weight": None,
        "feature_weight": 0.0,
        "cross_tokenizer_weight": 0.0,
        "kd_temperature": 1.0,
        "divergence": {"kind": "forward_kl"},
        "fusion": "mixture",
        "weighting": {"kind": "entropy", "granularity": "window:128", "tau": 0.25},
        "features": [],
        "cross_tokenizer": [],
        "mixing": "natural",
        "on_policy": None,
    },
    "versions": {"collegium": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
}


def lineage(**changes: Any) -> dict[str, Any]:
    return copy.deepcopy(_LINEAGE) | changes


def content(**changes: Any) -> dict[str, Any]:
    """Content of `evaluation.json`, with changes of the lineage."""
    figures = {"perplexity": figure(12.3456789), "bits_per_byte": figure(1.25), "kl/own": figure(0.75)}
    domains = {"web": {"documents": 4, "tokens": 90, "bytes": 90, "figures": figures}}
    return {
        "schema_version": SCHEMA_VERSION,
        "recipe": "0123456789abcdef",
        "model": "student",
        "held_out": {"context_length": 32},
        "confidence": 0.95,
        "domains": domains,
        "mean": {},
        "lineage": lineage(**changes),
    }


def evaluation(**changes: Any) -> Evaluation:
    return evaluation_of(content(**changes))


def finished_run(folder: Path, **changes: Any) -> Path:
    """A run folder as training leaves it."""
    made = evaluation(**changes)
    student = folder / "student"
    student.mkdir(parents=True)
    (student / "config.json").write_text("{}")
    (student / "model.safetensors").write_bytes(bytes(range(256)) * 64)
    (student / "tokenizer.json").write_text('{"é": 1}', encoding="utf-8")
    (student / "README.md").write_text(render_card(made, "name: x\n"), encoding="utf-8")
    (student / ".README.md.tmp").write_text("half-written")
    save_evaluation(made, folder)
    (folder / "recipe.yaml").write_text("output_dir: /home/someone/secret")
    (folder / "metrics.jsonl").write_text("{}")
    (folder / "checkpoints").mkdir()
    return folder
