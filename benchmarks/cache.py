"""What a cache of teachers costs to make, and what a step from it costs.

Teachers of SmolLM2-135M's size and a student of 31.5 million parameters, float32, one batch of 1024
tokens; random weights, scaled so that a position has some 50 tokens above the default threshold, as real
teachers have on real text. A step from the cache reads, checks and decodes its blocks itself, without
workers of a data loader.

    python -m benchmarks.cache [--quick] [--rounds 5]
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from benchmarks.contestants import KD_WEIGHT
from benchmarks.measure import median_seconds, peak_mb, rounded, take_turns, time_ratio
from benchmarks.models import VOCAB_SIZE, num_parameters
from benchmarks.train_step import NUM_TEACHERS, Setting, Step, fused_step, naive_step
from collegium.cache.builder import CacheBuilder
from collegium.cache.folder import Folder
from collegium.cache.manifest import CacheSettings, Manifest, TeacherIdentity
from collegium.cache.reader import CacheReader
from collegium.cache.verify import verify
from collegium.data.collate import BlockCollator
from collegium.signals.contracts import Batch, Capability, ItemCounts, predicted_positions
from collegium.signals.signals import ProjectedSignal
from collegium.teachers.cached import CachedTeacher, ReadAhead
from collegium.teachers.local import LocalTeacher
from collegium.training.model import DistillationModel
from collegium.training.objective import Objective


TOKENS = 1024
KEPT = 50.0
WRITTEN_BLOCKS = 4
Row = Mapping[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print; the last line is JSON."""
    options = _parse(arguments)
    setting = Setting.build(sequences=1, tokens=TOKENS, vocab_size=VOCAB_SIZE)
    rows = _rows(options.blocks)
    kept = [sharpen(teacher, rows[0]) for teacher in setting.teachers]
    sizes = {"student": num_parameters(setting.student), "teacher": num_parameters(setting.teachers[0])}
    print(f"{torch.get_num_threads()} threads, parameters {sizes}, {kept[0]:.0f} tokens a position above 0.001")
    with tempfile.TemporaryDirectory() as folder:
        written = _writing(Path(folder), setting, rows, rounds=options.rounds)
        steps = _steps(Path(folder), setting, rows)
        for step in steps.values():  # compiles, and allocates AdamW's state
            setting.forget_gradients()
            step()
        samples = take_turns(steps, rounds=options.rounds, before=setting.forget_gradients)
        read = _reading(Path(folder) / "top_k-0")
    print(f"\n{'':24}{'time s':>9}{'peak MB':>9}")
    for name, taken in samples.items():
        print(f"{name:24}{median_seconds(taken):9.3f}{peak_mb(taken) or float('nan'):9.0f}")
    figures = {
        "speedup_vs_naive_online": time_ratio(samples, "naive_3", "cached_3"),
        "speedup_vs_fused_online": time_ratio(samples, "fused_3", "cached_3"),
        "vs_cross_entropy": time_ratio(samples, "cached_3", "cross_entropy"),
        "hidden_states_vs_cross_entropy": time_ratio(samples, "hidden_states_3", "cross_entropy"),
        **written,
        **read,
        "rounds": len(samples["cached_3"]),
        "steps": {n: {"time_s": median_seconds(t), "peak_mb": peak_mb(t)} for n, t in samples.items()},
        "setup": {"parameters": sizes, "tokens": TOKENS, "threads": torch.get_num_threads()},
    }
    print(json.dumps(rounded(figures)))


def _rows(num_blocks: int) -> list[Row]:
    generator = np.random.default_rng(0)
    return [
        {
            "input_ids": generator.integers(2, VOCAB_SIZE, TOKENS).tolist(),
            "segment_lengths": [TOKENS],
            "segment_documents": [number],
            "sample_id": number,
        }
        for number in range(num_blocks)
    ]


@torch.no_grad()
def sharpen(model: PreTrainedModel, row: Row) -> float:
    """Scale the last norm until about `KEPT` tokens a position are above the threshold; how many there are."""
    norm = model.base_model.norm
    hidden = model.base_model(input_ids=torch.tensor([row["input_ids"][:128]]), use_cache=False).last_hidden_state
    logits = model.get_output_embeddings()(hidden[0])
    spread = float(logits.std())
    for std in np.arange(8.0, 2.0, -0.1):  # from one token that has everything to ever flatter ones
        scale = float(std) / spread
        kept = float(((logits * scale).log_softmax(-1) > np.log(1e-3)).sum(-1).float().mean())
        if kept >= KEPT:
            break
    norm.weight.mul_(scale)
    return kept


def _collate() -> BlockCollator:
    return BlockCollator(pad_token_id=1)


def _build(folder: Path, teacher: LocalTeacher, rows: Sequence[Row], mode: str) -> CacheBuilder:
    identity = TeacherIdentity(
        teacher.fingerprint,
        teacher.name,
        VOCAB_SIZE,
        teacher.underlying_model.hidden_size,
        teacher.underlying_model.num_layers,
    )
    plan = Manifest(identity, "benchmark", {"train": len(rows)}, CacheSettings(mode=mode))  # type: ignore[arg-type]
    return CacheBuilder(Folder.at(folder), lambda: teacher, rows, _collate(), plan, batch_size=1)


def _teacher(setting: Setting, number: int) -> LocalTeacher:
    model = setting.teachers[number]
    return LocalTeacher(f"teacher-{number}", model, vocab_size=VOCAB_SIZE, fingerprint=str(number))


def _writing(folder: Path, setting: Setting, rows: Sequence[Row], *, rounds: int) -> dict[str, object]:
    """Time of scoring and writing against that of the teacher alone; the caches that the steps read."""
    sizes = {}
    for mode in ("top_k", "hidden_states"):
        for number in range(NUM_TEACHERS):
            manifest = _build(folder / f"{mode}-{number}", _teacher(setting, number), rows, mode).build()
            sizes[f"{mode}_bytes_per_token"] = manifest.bytes_per_token
    count = iter(range(10**6))
    teacher = _teacher(setting, 0)
    batch = Batch.from_inputs(_collate()(rows[:1]))
    positions = predicted_positions(batch)

    @torch.no_grad()
    def forward() -> None:
        for _ in range(WRITTEN_BLOCKS):
            signal = teacher.score(batch, positions, need=frozenset({Capability.FULL_VOCAB})).signal
            assert isinstance(signal, ProjectedSignal), "a local teacher's"
            for start in range(0, len(positions), 128):
                signal.logits(slice(start, start + 128))

    calls: dict[str, Callable[[], object]] = {
        "forward": forward,
        "top_k": lambda: _build(folder / f"w{next(count)}", teacher, rows[:WRITTEN_BLOCKS], "top_k").build(),
        "hidden_states": lambda: _build(
            folder / f"w{next(count)}", teacher, rows[:WRITTEN_BLOCKS], "hidden_states"
        ).build(),
    }
    for call in calls.values():
        call()
    samples = take_turns(calls, rounds=rounds)
    return {
        "writing_vs_forward": time_ratio(samples, "top_k", "forward"),
        "writing_hidden_states_vs_forward": time_ratio(samples, "hidden_states", "forward"),
        **sizes,
    }


def _steps(folder: Path, setting: Setting, rows: Sequence[Row]) -> dict[str, Step]:
    return {
        "naive_3": naive_step(setting, 3),
        "fused_3": fused_step(setting, 3),
        "cached_1": cached_step(setting, [folder / "top_k-0"], rows),
        "cached_3": cached_step(setting, [folder / f"top_k-{m}" for m in range(3)], rows),
        "hidden_states_3": cached_step(setting, [folder / f"hidden_states-{m}" for m in range(3)], rows),
        "cross_entropy": fused_step(setting, 0),
        "naive_cross_entropy": naive_step(setting, 0),
    }


def cached_step(setting: Setting, caches: Sequence[Path], rows: Sequence[Row]) -> Step:
    """A step that reads its block from the caches; another block each time."""
    teachers = [CachedTeacher(path.name, path) for path in caches]
    objective = Objective([t.name for t in teachers], kd_weight=KD_WEIGHT)
    model = DistillationModel(setting.student, objective, vocab_size=VOCAB_SIZE)
    collate = ReadAhead(_collate(), teachers)
    count = iter(range(10**9))

    def step() -> None:
        batch = Batch.from_inputs(collate([rows[next(count) % len(rows)]]))
        positions = predicted_positions(batch)
        counts = ItemCounts(torch.tensor(len(positions)), batch.attention_mask.sum())
        outputs = [teacher.score(batch, positions, need=objective.need) for teacher in teachers]
        setting.update(model(batch, positions, outputs, counts).loss)

    return step


def _reading(folder: Path) -> dict[str, float]:
    """Milliseconds of a random read with decoding, and megabytes a second of a look at every byte."""
    reader = CacheReader(folder)
    order = np.random.default_rng(1).integers(0, len(reader), 64)
    start = time.perf_counter()
    for index in order:
        reader.row(int(index))
    per_row = (time.perf_counter() - start) / len(order)
    size = sum(shard.bytes for shard in reader.manifest.shards)
    start = time.perf_counter()
    verify(reader.folder)
    return {"read_ms_per_row": 1e3 * per_row, "verify_mb_per_s": size / (time.perf_counter() - start) / 1e6}


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Making a cache of teachers, and training from it.")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and blocks")
    parser.add_argument("--rounds", type=int, help="rounds (5; quick: 2)")
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (2 if options.quick else 5)
    options.blocks = 4 if options.quick else 16
    return options


if __name__ == "__main__":
    main()
