"""A specification of two small files of text, and results that nobody measured."""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from collegium.paper.specification import Specification


WORDS = {
    "cats": ["cat", "purrs", "mouse", "milk", "naps", "whiskers", "sofa", "window", "tail", "paw"],
    "dogs": ["dog", "barks", "ball", "bone", "runs", "leash", "garden", "postman", "walks", "kennel"],
}


def document(domain: str, number: int) -> str:
    """Words of a domain; no two documents are near one another."""
    chance = random.Random(f"{domain} {number}")
    return f"{domain} number {number}: " + " ".join(chance.choice(WORDS[domain]) for _ in range(40))


def write_texts(folder: Path, documents: int = 60) -> None:
    """A file of one document a line for each domain, and the recipe that makes teachers."""
    for domain in WORDS:
        lines = [document(domain, number) for number in range(documents)]
        (folder / f"{domain}.txt").write_text("\n".join(lines), encoding="utf-8")
    (folder / "teacher.yaml").write_text(TEACHER, encoding="utf-8")


TEACHER = """
name: teacher
method: ce
student: {kind: config, model: OUTPUT/models/teacher}
data: {block_size: 32, held_out_documents: 2}
training: {max_steps: 3, batch_size: 2, learning_rate: 1e-2}
evaluation: {max_blocks: 4, bootstrap_samples: 100}
"""


def content(folder: Path, **changes: Any) -> dict[str, Any]:
    """Of a specification over the texts in `folder`."""
    size = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
    }
    return {
        "name": "tiny",
        "about": "Two files.",
        "tokenizer": {"vocab_size": 300, "characters": 4000},
        "models": {"teacher": size, "student": size},
        "sources": {name: {"kind": "files", "path": str(folder / f"{name}.txt")} for name in WORDS},
        "student_documents": {"cats": 20, "dogs": 20},
        "student_tokens": 600,
        "teachers": {
            "cats": {"recipe": "teacher.yaml", "sources": ["cats"]},
            "dogs": {"recipe": "teacher.yaml", "sources": ["dogs"], "seed": 1},
        },
        "experts": ["cats", "dogs"],
        "recipe": {
            "student": {"kind": "config", "model": "OUTPUT/models/student"},
            "cache": {"mode": "hidden_states"},
            "data": {"block_size": 32, "held_out_documents": 4},
            "training": {"max_steps": 3, "batch_size": 2},
            "evaluation": {"generation": {"prompts": 2, "prompt_tokens": 8, "new_tokens": 4}},
        },
        "learning_rates": [0.01, 0.02],
        "headline_seeds": 2,
        "seeds": 1,
        "compute_factor": 2,
        "low_data_tokens": [200],
        **changes,
    }


def specification(folder: Path, **changes: Any) -> Specification:
    """See `content`."""
    return Specification.model_validate(content(folder, **changes))


def table(documents: int, seed: int, *, nll: float = 3.0, noise: float = 0.1) -> dict[str, Any]:
    """Made-up sums of one domain's documents, that are the same for all seeds but for the noise."""
    base, chance = random.Random(0), random.Random(seed)
    tokens = [base.randint(10, 60) for _ in range(documents)]
    return {
        "tokens": tokens,
        "bytes": [4 * n for n in tokens],
        "figures": {
            "nll": [n * (nll + base.gauss(0, 0.5) + chance.gauss(0, noise)) for n in tokens],
            "accuracy": [n * chance.random() for n in tokens],
            "kl/common": [n * chance.random() for n in tokens],
            "teacher/cats/kl": [n * chance.random() for n in tokens],
            "teacher/dogs/kl": [n * chance.random() for n in tokens],
        },
        "confidence_gaps": [[chance.gauss(0, 1) for _ in range(5)] for _ in tokens],
    }


def outcome(tables: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """The JSON of one run."""
    fixed: dict[str, Any] = {"recipe": "0", "steps": 3, "continuations": None, "own": False, "seconds": 1.5}
    return {**fixed, "tables": dict(tables), **changes}
