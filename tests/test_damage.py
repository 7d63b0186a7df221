"""Every kind of file that the package writes and reads again: 30 flips and 10 cuts each, and none is believed.

What is damaged is refused by name, or made again, or the damage is where nothing is read. A module that writes
files and is not in `HELD` fails a test below: it needs a row there, and its files a case in `KINDS` or a test of
their own.
"""

import ast
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from collegium.alignment.token_bytes import TokenBytes
from collegium.alignment.vocabulary import kept_arrays
from collegium.assembly import calibration
from collegium.assembly.student import _parsed_layers, _with_digest, _without_digest
from collegium.base import known_digests
from collegium.base.digests import verify_folder, write_digests, write_sealed
from collegium.base.errors import DataError, UserError
from collegium.cache.folder import Folder
from collegium.cache.records import BEGUN_NAME, _begun, read_record, record_name, write_shard
from collegium.cache.scoring import Scorer
from collegium.data.prepare import prepare_text
from collegium.data.sources import FileSource
from collegium.losses.calibration import FittedTemperature
from collegium.models.pretrained import load_config, load_tokenizer
from collegium.models.pruning.choice import Kept
from collegium.paper.command import _read
from collegium.paper.measured import read_results
from collegium.paper.preparation import claim_folder, make_models
from collegium.paper.run_result import RunResult
from collegium.pipeline import cache as cache_commands
from collegium.pipeline.cost import PREFLIGHT, _plan
from collegium.pipeline.measure import logged_curves
from collegium.pipeline.run_folder import claim_run_dir, require_free
from collegium.recipe.file import load_recipe
from collegium.report.evaluation_file import read_evaluation
from collegium.signals.metrics import JsonlWriter, _warn
from collegium.training.checkpoint import CheckpointDirectory, verify
from tests.support import tiny_experiment
from tests.support.caches import all_rows, collate, pico_teacher, plan_of
from tests.support.damage import damages
from tests.support.made_up_run import RECIPE, write_run
from tests.support.pico import TEXTS, byte_tokenizer


SOURCE = Path(__file__).parents[1] / "src" / "collegium"


class Kind(NamedTuple):
    """A file, and whatever is computed from it; None if the damage was noticed and the file is left out."""

    path: Path
    read: Callable[[], Any]


def recipe_yaml(folder: Path) -> Kind:
    (folder / "made-up.yaml").write_text(RECIPE)
    recipe = load_recipe(folder / "made-up.yaml")
    claim_run_dir(recipe, folder)

    def read() -> Any:
        there = require_free(recipe, folder)
        return there and there.fingerprint

    return Kind(folder / "recipe.yaml", read)


def evaluation_json(folder: Path) -> Kind:
    run = write_run(folder / "run")
    write_sealed(run / "evaluation.json", json.loads((run / "evaluation.json").read_text()))
    return Kind(run / "evaluation.json", lambda: repr(read_evaluation(run)))


def temperatures_json(folder: Path) -> Kind:
    path = folder / "temperatures.json"
    calibration._write(path, {"one": {"weight_temperature": FittedTemperature(1.25, 0.1, 3.0, 2.9, 2.8, 100)}})
    return Kind(path, lambda: repr(calibration._read(path)))


def kept_json(folder: Path) -> Kind:
    kept = Kept([0, 1], list(range(30)), [[0], [1]], [[0, 1], [2, 3]], [[5], [6]])
    return _kept(folder / "kept.json", kept.dumped(), Kept.parsed)


def kept_layers_json(folder: Path) -> Kind:
    return _kept(folder / "kept_layers.json", json.dumps(list(range(20))), _parsed_layers)


def _kept(path: Path, text: str, parsed: Callable[[str], Any]) -> Kind:
    path.write_text(_with_digest(text))

    def read() -> Any:
        try:
            return parsed(_without_digest(path.read_text(errors="replace")))
        except (ValueError, TypeError) as error:  # as `_once` does
            raise DataError(str(error)) from error

    return Kind(path, read)


def preflight_json(folder: Path) -> Kind:
    write_sealed(folder / PREFLIGHT, {"recipe": "abc", "estimate": {"seconds": 12.5, "bytes": 10**9}}, indent=1)
    return Kind(folder / PREFLIGHT, lambda: _plan(folder, "abc"))


def metrics_jsonl(folder: Path) -> Kind:
    path = folder / "metrics.jsonl"
    writer = JsonlWriter(path)
    for step in range(1, 9):
        writer.write({"step": step, "train/loss": 4.0 - step / 7})
    writer.write({"step": 8, "train/train_runtime": 12.0})

    def read() -> Any:
        _warn.cache_clear()
        said: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger("collegium").addHandler(handler)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("collegium.pipeline.measure.say", said.append)
            curves = logged_curves(folder)
        logging.getLogger("collegium").removeHandler(handler)
        assert all("metrics.jsonl: " in sentence for sentence in said)
        return None if said else repr(curves)

    return Kind(path, read)


def held_out_of_an_unfinished_preparation(folder: Path) -> Kind:
    prepared = _begun_preparation(folder)
    return Kind(folder / "text" / "held_out" / "web.jsonl", prepared)


def progress_json(folder: Path) -> Kind:
    prepared = _begun_preparation(folder)
    return Kind(folder / "text" / "progress.json", prepared)


class _Stop(Exception):
    pass


def _begun_preparation(folder: Path) -> Callable[[], str]:
    """Begin to prepare text in `folder/text`; what a copy of that becomes when it is finished."""
    (folder / "web.txt").write_text("\n".join(f"{text}, {i}" for i, text in enumerate(TEXTS * 3)))

    def prepare(directory: Path, on_progress: Any = None) -> str:
        text = prepare_text(
            [FileSource("web", str(folder / "web.txt"))],
            byte_tokenizer(),
            directory=directory,
            block_size=64,
            held_out_documents=5,
            add_bos=False,
            add_eos=True,
            max_bad_fraction=0.1,
            near_duplicate_threshold=0.8,
            blocks_per_shard=4,
            on_progress=on_progress,
        )
        return json.dumps(text.manifest)

    def stop(_: Any) -> None:
        raise _Stop

    with pytest.raises(_Stop):
        prepare(folder / "text", stop)

    def read() -> str:
        shutil.rmtree(folder / "copy", ignore_errors=True)
        return prepare(shutil.copytree(folder / "text", folder / "copy"))

    return read


def shard_record(folder: Path) -> Kind:
    plan = plan_of()
    rows = [row for batch, _ in _scorer(plan).score(range(4)) for row in batch]
    record = write_shard(Folder.at(folder), plan, 0, rows, tokens=50)
    Folder.at(folder).write(record_name(0), record.to_bytes())
    return Kind(folder / record_name(0), lambda: read_record(Folder.at(folder), plan, 0))


def _scorer(plan: Any) -> Scorer:
    return Scorer(
        pico_teacher,
        all_rows(),
        collate,
        plan.teacher,
        plan.settings,
        batch_size=4,
        device=torch.device("cpu"),
    )


def begun_json(folder: Path) -> Kind:
    plan = plan_of()
    Folder.at(folder).write(BEGUN_NAME, plan.to_bytes())
    return Kind(folder / BEGUN_NAME, lambda: _begun(Folder.at(folder)))


def source_yaml(folder: Path) -> Kind:
    """Of a cache whose manifest is gone; with one, its digest is there."""
    (folder / "made-up.yaml").write_text(RECIPE.replace("model: org/one", "model: org/one, cached: true"))
    recipe = load_recipe(folder / "made-up.yaml")
    source = cache_commands._source(recipe, recipe.teachers_to_cache[0])
    Folder.at(folder).write("source.yaml", source)
    return Kind(folder / "source.yaml", lambda: cache_commands._recipe_of(str(folder)).fingerprint)


def vocabulary_map(folder: Path) -> Kind:
    student = TokenBytes(byte_tokenizer())

    def read() -> Any:
        found = kept_arrays("test", student, student, ["a"], lambda: {"a": np.arange(50)})
        return found["a"].tolist()

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLLEGIUM_CACHE", str(folder))
        read()
    (path,) = (folder / "vocabularies").iterdir()
    return Kind(path, read)


def note_of_a_digest(folder: Path) -> Kind:
    path = folder / "model.safetensors"
    path.write_bytes(bytes(200))

    def read() -> str:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(known_digests, "_SETTLED_NS", -1)
            patch.setattr(known_digests, "LARGE", 100)
            return known_digests.content_digest(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLLEGIUM_CACHE", str(folder))
        read()
    (note,) = (folder / "digests").iterdir()
    return Kind(note, read)


def digests_json(folder: Path) -> Kind:
    (folder / "model.safetensors").write_bytes(bytes(100))
    write_digests(folder)
    return Kind(folder / "digests.json", lambda: verify_folder(folder) or "whole")


def checkpoint_file(folder: Path, name: str) -> Kind:
    tensors = {"model": {"w": torch.arange(20.0)}, "optimizer": {"w.exp_avg": torch.ones(5)}}
    path = CheckpointDirectory(folder).publish(3, tensors, {"sampler": {"position": 12}})
    return Kind(path / name, lambda: verify(path) or "whole")


def made_of_json(folder: Path) -> Kind:
    tiny_experiment.write_texts(folder)
    specification = tiny_experiment.specification(folder)
    claim_folder(specification, folder, folder)
    return Kind(folder / "made-of.json", lambda: claim_folder(specification, folder, folder) or "whole")


def result_json(folder: Path) -> Kind:
    content = {"steps": 3, "seconds": 1.5, "parameters": 10**6, "tables": {"web": {"tokens": [1, 2]}}}
    write_sealed(folder / "result.json", content)
    return Kind(folder / "result.json", lambda: _only(content, RunResult.read(folder / "result.json").content))


def measured_targets(folder: Path) -> Kind:
    content = {"web": {"tokens": [1, 2, 3], "figures": {"nll": [0.5, 0.25]}}}
    write_sealed(folder / "targets-1.json", content)
    return Kind(folder / "targets-1.json", lambda: _only(content, _read(folder / "targets-1.json")))


def results_of_an_experiment(folder: Path) -> Kind:
    content = {"experiment": "table1", "rows": [{"name": "ours", "figures": {"perplexity": 74.8}}]}
    write_sealed(folder / "table1.json", content, indent=1)
    return Kind(folder / "table1.json", lambda: _only(content, read_results(folder)["table1"].content))


def _only(keys: dict[str, Any], content: Any) -> dict[str, Any]:
    """What is read of a document; one flipped bit in the name of its digest makes that another key."""
    return {key: content[key] for key in keys}


def made_model(folder: Path, name: str) -> Kind:
    specification = tiny_experiment.specification(folder)
    tiny_experiment.write_texts(folder)
    make_models(specification, folder)
    made = next(iter((folder / "models").iterdir()))
    read = load_config if name == "config.json" else load_tokenizer
    return Kind(made / name, lambda: read(str(made)) and "whole")


KINDS: dict[str, Callable[[Path], Kind]] = {
    "recipe.yaml": recipe_yaml,
    "evaluation.json": evaluation_json,
    "temperatures.json": temperatures_json,
    "kept.json": kept_json,
    "kept_layers.json": kept_layers_json,
    "preflight.json": preflight_json,
    "metrics.jsonl": metrics_jsonl,
    "held-out documents of an unfinished preparation": held_out_of_an_unfinished_preparation,
    "progress.json": progress_json,
    "record of a shard": shard_record,
    "begun.json": begun_json,
    "source.yaml": source_yaml,
    "map of vocabularies": vocabulary_map,
    "note of a digest": note_of_a_digest,
    "digests.json": digests_json,
    "weights in a checkpoint": lambda folder: checkpoint_file(folder, "model.safetensors"),
    "optimizer in a checkpoint": lambda folder: checkpoint_file(folder, "optimizer.safetensors"),
    "document in a checkpoint": lambda folder: checkpoint_file(folder, "sampler.json"),
    "manifest of a checkpoint": lambda folder: checkpoint_file(folder, "manifest.json"),
    "made-of.json": made_of_json,
    "result.json": result_json,
    "measured targets": measured_targets,
    "results of an experiment": results_of_an_experiment,
    "configuration of an experiment": lambda folder: made_model(folder, "config.json"),
    "tokenizer of an experiment": lambda folder: made_model(folder, "tokenizer.json"),
}


@pytest.mark.parametrize("name", KINDS)
def test_nothing_damaged_is_used(tmp_path, monkeypatch, name):
    monkeypatch.setenv("COLLEGIUM_CACHE", str(tmp_path))
    kind = KINDS[name](tmp_path)
    whole = kind.read()
    assert whole is not None
    for damage in damages(kind.path):
        try:
            found = kind.read()
        except UserError as error:
            assert str(error), damage
        else:
            assert found is None or found == whole, f"{damage}: and another value is used"
    assert kind.read() == whole


HELD = {
    "alignment/vocabulary.py": "here",
    "assembly/calibration.py": "here",
    "assembly/student.py": "here",
    "base/digests.py": "tests/base/test_digests.py",
    "base/durable.py": "writes for others",
    "base/known_digests.py": "here",
    "cache/exchange.py": "for other programs: lists as Parquet with page checksums, which nothing here reads",
    "cache/folder.py": "writes for others",
    "cache/records.py": "tests/cache/test_damage.py",
    "cache/shard.py": "tests/cache/test_damage.py",
    "data/journal.py": "here",
    "data/preparation.py": "tests/data/test_prepared.py",
    "data/storage.py": "tests/data/test_prepared.py",
    "demo/run.py": "a summary for people, which nothing reads",
    "export/artefact.py": "a description for people, which nothing reads",
    "export/formats.py": "for other programs: measured before it is published, never read here again",
    "export/gguf_file.py": "for other programs: measured before it is published, never read here again",
    "export/int8.py": "for other programs: measured before it is published, never read here again",
    "models/gguf.py": "tests/base/test_digests.py",
    "paper/command.py": "here",
    "paper/page.py": "a page for people, which nothing reads",
    "paper/plots.py": "a figure for people, which nothing reads",
    "paper/preparation.py": "here",
    "paper/switching.py": "a source of text, identified by every byte: tests/data/test_files.py",
    "paper/task_work.py": "here",
    "paper/work.py": "here",
    "paper/workers.py": "what processes printed, for people",
    "pipeline/card.py": "a card for people, who may edit it: tests/base/test_digests.py",
    "pipeline/preflight/estimate/memory.py": "a switch of the kernel",
    "pipeline/preflight/judge.py": "here",
    "pipeline/push.py": "a copy of what was verified, removed once it is sent",
    "pipeline/report.py": "a page for people, which nothing reads",
    "pipeline/run_folder.py": "here",
    "pipeline/starters.py": "a recipe for people to edit",
    "pipeline/train.py": "tests/pipeline/test_run_damage.py",
    "report/evaluation_file.py": "here",
    "report/svg.py": "a figure within a page",
    "signals/metrics.py": "here",
    "training/checkpoint.py": "here",
    "training/publication.py": "tests/pipeline/test_run_damage.py",
}
"""Modules that write files: the test that damages these, or why no damage to them decides a number."""

WRITES = {
    "GGUFWriter",
    "ParquetWriter",
    "new_stream",
    "pipe_file",
    "save_file",
    "save_model",
    "save_pretrained",
    "savefig",
    "update_digest",
    "write_bytes",
    "write_digests",
    "write_json",
    "write_sealed",
    "write_table",
    "write_text",
}
"""Names of functions that write a file."""


def writers() -> set[str]:
    """Modules that call one of `WRITES`, or open a file for writing."""
    found = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and _writes(node):
                found.add(path.relative_to(SOURCE).as_posix())
    return found


def _writes(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    values = [*call.args, *(keyword.value for keyword in call.keywords)]
    modes = [v.value for v in values if isinstance(v, ast.Constant) and isinstance(v.value, str)]
    is_open = name == "open" and any(mode and set(mode) <= set("wax+bt") for mode in modes)
    return name in WRITES or is_open


def test_every_module_that_writes_files_is_held():
    found = writers()
    assert found - set(HELD) == set(), "these write files: add a row to HELD, and a case to KINDS or a test"
    assert set(HELD) - found == set(), "these write none any more"
    tests = {held for held in HELD.values() if held.startswith("tests/")}
    missing = [test for test in tests if not (SOURCE.parents[1] / test).is_file()]
    assert missing == []
