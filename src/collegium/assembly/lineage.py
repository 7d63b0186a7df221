"""The lineage of a run, all that it was made from, as plain data: the section `lineage` of `evaluation.json`.

Whoever gets a student must be able to say which models taught it, on which text, and under which licences.
All of that is known when a run ends and is lost when the folder is passed on, so it is written then. No path
of this machine is in it: hub ids and `package:` references stand as in the recipe, paths by their last name.
The networks themselves are only counted, on no device; that takes some tenths of a second a model.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

import collegium
from collegium.assembly.model_lineage import licence_of, model_of, path_of, stored_parameters, teacher_of
from collegium.base.digests import unsealed
from collegium.base.errors import DataError
from collegium.models.merging import is_untied
from collegium.models.pretrained import load_config
from collegium.recipe.sections.base import Section
from collegium.recipe.sections.models import (
    ConfigStudentSection,
    ContinuedStudentSection,
    LayerDropStudentSection,
    PrunedStudentSection,
)
from collegium.recipe.sections.sources import FileSourceSection, HubSourceSection, Source
from collegium.report import metric_names as names
from collegium.report.card.on_disk import CARD_NAME, origin_of, resolved_revision, shown_path, shown_reference
from collegium.report.evaluation_file import stored_lineage
from collegium.signals.metrics import read_jsonl


if TYPE_CHECKING:
    from collegium.assembly.run import Run

SCHEMA_VERSION = 1


def lineage_of(run: "Run", folder: Path) -> dict[str, Any]:
    """Teachers, student, text, training and versions of a finished run; `docs/model-card.md` has the keys."""
    recipe = run.recipe
    log = _log_of(folder)
    return {
        "schema": SCHEMA_VERSION,
        "name": recipe.name,
        "recipe": recipe.fingerprint,
        "teachers": [
            {**teacher_of(run, section), "weight": _weight_of(section.name, log)} for section in recipe.teachers
        ],
        "student": _student_of(run, folder),
        "data": [_source_of(source, run.text.manifest["sources"]) for source in recipe.data.sources],
        "training": _training_of(run, log),
        "versions": {
            "collegium": collegium.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def _log_of(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    return read_jsonl(path) if path.exists() else []


def _weight_of(teacher: str, log: list[dict[str, Any]]) -> dict[str, float] | None:
    """A teacher's share of the target as it was logged: over the run, and at its end."""
    key = names.while_training(names.of_teacher(teacher, names.WEIGHT))
    found = [line.get(key) for line in log]
    weights = [weight for weight in found if isinstance(weight, float | int)]
    return {"mean": sum(weights) / len(weights), "last": weights[-1]} if weights else None


def _student_of(run: "Run", folder: Path) -> dict[str, Any]:
    section = run.recipe.student
    if isinstance(section, ContinuedStudentSection):
        began = _continued(section)
    else:
        began = model_of(section.model, section.revision, section.licence)
    if isinstance(section, ConfigStudentSection):  # its weights are random: nothing of the model is in it
        began |= {"licence": None, "licence_from": None}
    tokenizer = None if section.tokenizer is None else shown_reference(section.tokenizer)
    return {
        "kind": section.kind,
        **began,
        "layers_kept": _layers_kept(section, folder),
        "pruned_to": section.sizes if isinstance(section, PrunedStudentSection) else None,
        "parameters": stored_parameters(folder / "student"),
        "untied": section.lora is not None and _is_untied(folder / "student", section.model, section.revision),
        "trained_parameters": None if section.lora is None else stored_parameters(folder / "adapter"),
        "tokenizer": tokenizer,
        "vocab_size": run.vocab_size,
    }


def _is_untied(student: Path, base: str, revision: str | None) -> bool:
    """Whether adapters made embeddings and head two matrices, which were one in the base."""
    try:
        return is_untied(load_config(str(student)), load_config(base, revision=revision))
    except DataError:  # the base is gone
        return False


def _continued(section: ContinuedStudentSection) -> dict[str, Any]:
    """An earlier run's student, with what that one was made from."""
    licence, stated_by = licence_of(section.model, section.model, section.licence)
    return {
        "model": shown_path(section.run),
        "origin": "local",
        "revision": None,
        "licence": licence,
        "licence_from": stated_by,
        "earlier": stored_lineage(Path(section.run)),
    }


def _layers_kept(section: Section, folder: Path) -> list[int] | None:
    if isinstance(section, LayerDropStudentSection):
        return list(section.keep_layers or ()) or _read(folder / "kept_layers.json").get("layers")
    return _read(folder / "kept.json").get("layers") if isinstance(section, PrunedStudentSection) else None


def _read(path: Path) -> dict[str, Any]:
    """JSON of a run folder; a list is of layers. Empty where nothing can be read: lineage stops no run."""
    try:
        content = unsealed(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {"layers": content}


def _source_of(section: Source, counts: Mapping[str, Any]) -> dict[str, Any]:
    """One source of text, with what was made of it."""
    dataset = None if isinstance(section, FileSourceSection) else section.dataset
    path = None if isinstance(section, HubSourceSection) else section.path
    reference = dataset or path
    assert reference is not None, "validated: a source has one of both"
    revision = getattr(section, "revision", None)
    licence, stated_by = licence_of(
        reference, path_of(reference), section.licence, revision=revision, repo_type="dataset"
    )
    return {
        "name": section.name,
        "kind": section.kind,
        "task": getattr(section, "task", None),
        "origin": origin_of(reference) if dataset else "package" if reference.startswith("package:") else "local",
        "dataset": None if dataset is None else shown_reference(dataset),
        "config": getattr(section, "config", None),
        "split": None if dataset is None else getattr(section, "split", None),
        "revision": resolved_revision(dataset, revision, name=CARD_NAME, repo_type="dataset") if dataset else None,
        "path": None if path is None else shown_path(path),
        "licence": licence,
        "licence_from": stated_by,
        "language": section.language,
        **{key: counts[section.name][key] for key in ("train_tokens", "held_out_documents", "held_out_tokens")},
    }


def _training_of(run: "Run", log: list[dict[str, Any]]) -> dict[str, Any]:
    """The work of the optimizer, and the text that it read as the trainer counted it, repeated parts too."""
    recipe = run.recipe
    training = recipe.training
    objective = recipe.objective
    read = _read_text(log)
    return {
        "steps": _last(log, names.STEP) or training.max_steps,
        "epochs": None if read["blocks"] is None else read["blocks"] / len(run.text.train),
        **read,
        "domains": {domain: _read_text(log, domain) for domain in run.domains},
        "batch_size": training.batch_size,
        "gradient_accumulation": training.gradient_accumulation,
        "block_size": recipe.data.block_size,
        "learning_rate": training.learning_rate,
        "lr_scheduler": training.lr_scheduler,
        "precision": training.precision,
        "seed": recipe.seed,
        "method": recipe.method,
        "kd_weight": _plain(objective.kd_weight),
        "ce_weight": _plain(objective.ce_weight),
        "feature_weight": _plain(objective.feature_weight),
        "cross_tokenizer_weight": _plain(objective.cross_tokenizer_weight),
        "kd_temperature": objective.kd_temperature,
        "divergence": _plain(objective.divergence),
        "fusion": objective.fusion,
        "weighting": _plain(objective.weighting),
        "features": [_plain(feature) for feature in objective.features] if objective.matches_features else [],
        "cross_tokenizer": [_plain(term) for term in objective.cross_tokenizer],
        "mixing": recipe.data.mixing.kind,
        "on_policy": None if recipe.on_policy is None else _plain(recipe.on_policy),
    }


def _read_text(log: list[dict[str, Any]], domain: str | None = None) -> dict[str, int | None]:
    """Blocks, tokens and predicted positions, of all text or of a domain; None where they were not counted."""
    return {part: _last(log, names.while_training(names.read(part, domain))) for part in names.READ}


def _last(log: list[dict[str, Any]], key: str) -> Any:
    return next((line[key] for line in reversed(log) if key in line), None)


def _plain(value: Any) -> Any:
    """A section as a mapping without what is not given; a number as it is."""
    return value.model_dump(mode="json", exclude_none=True) if isinstance(value, Section) else value
