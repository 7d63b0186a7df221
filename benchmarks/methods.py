"""What a step of each method costs, as a multiple of plain distillation (`kd`) in the same run.

Every entry of `collegium.recipe.methods.METHODS` is a recipe here: same student, teachers, optimizer and tokens,
in turns. A step is the teachers' scores, the whole loss, backward and AdamW, as in `benchmarks.train_step`.
What a method does outside of that (generating text, choosing data, pruning the student) is no part of a
step; one that sets anything beside its objective, or cannot be built for these models, is left out, and the
reason printed.

    python -m benchmarks.methods [--quick] [--teachers 2] [--tokens 512] [--rounds 7] [--only NAME ...]
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from benchmarks.measure import (
    Samples,
    describe_memory_check,
    median_seconds,
    peak_mb,
    peak_ratio,
    rounded,
    take_turns,
    time_ratio,
)
from benchmarks.models import STUDENT, TEACHER, VOCAB_SIZE, build_model, num_parameters
from benchmarks.train_step import Setting, Step
from collegium.assembly.objective import build_objective
from collegium.assembly.run import Run
from collegium.recipe.methods import METHODS
from collegium.recipe.recipe import Recipe
from collegium.signals.contracts import Batch, ItemCounts, Teacher, predicted_positions
from collegium.teachers.local import LocalTeacher
from collegium.training.model import DistillationModel


BASE = "kd"
QUICK_SECONDS = 60.0
QUICK_VOCAB_SIZE = 2048
QUICK_SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
}


def build_setting(*, num_teachers: int, sequences: int, tokens: int, quick: bool) -> Setting:
    """Random models and tokens; documents of half a block, so that segments count."""
    vocab_size = QUICK_VOCAB_SIZE if quick else VOCAB_SIZE
    sizes = (QUICK_SIZES, QUICK_SIZES) if quick else (STUDENT, TEACHER)
    student = build_model(sizes[0], seed=0, vocab_size=vocab_size).train()
    teachers = [build_model(sizes[1], seed=m, vocab_size=vocab_size) for m in range(1, num_teachers + 1)]
    for teacher in teachers:
        teacher.eval().requires_grad_(False)
    input_ids = torch.randint(2, vocab_size, (sequences, tokens))
    batch = Batch(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids, dtype=torch.bool),
        labels=input_ids.clone(),
        position_ids=(torch.arange(tokens) % (tokens // 2)).expand(sequences, tokens),
        sample_ids=torch.arange(sequences),
    )
    return Setting(student, teachers, torch.optim.AdamW(student.parameters(), lr=1e-5), batch)


def recipe_of(method: str, names: Sequence[str]) -> Recipe:
    """The least that a recipe must say for this method."""
    return Recipe.model_validate(
        {
            "name": method,
            "method": method,
            "student": {"kind": "pretrained", "model": "student"},
            "teachers": [{"name": name, "model": name} for name in names],
            "data": {"sources": [{"kind": "files", "name": "text", "path": "text"}]},
            "training": {"max_steps": 1},
        }
    )


def word_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Every second token begins a word, for methods that read words."""
    tokens = {f"{'Ġ' if i % 2 else ''}token{i}": i for i in range(vocab_size)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(tokens)))


def method_step(setting: Setting, method: str) -> Step:
    """The step of a method, called as the trainer calls it.

    Raises:
        ValueError: the method is more than a loss, or cannot be built for these models.
    """
    if beyond := sorted(set(METHODS[method]) - {"objective"}):
        raise ValueError(f"sets {', '.join(beyond)} too, which is no part of a step")
    vocab_size = setting.student.config.vocab_size
    teachers: list[Teacher] = [
        LocalTeacher(f"teacher-{m}", model, vocab_size=vocab_size, fingerprint=str(m))
        for m, model in enumerate(setting.teachers)
    ]
    recipe = recipe_of(method, [t.name for t in teachers])
    run = Run(recipe).derive(student=setting.student, teachers=teachers, tokenizer=word_tokenizer(vocab_size))
    objective = build_objective(run)
    objective.set_progress(0.5)  # past any warm-up, so that a step is what most of the run is
    model = DistillationModel(setting.student, objective, vocab_size=vocab_size)
    extras = list(objective.parameters())
    optimizer = torch.optim.AdamW(extras, lr=1e-5) if extras else None

    def step() -> None:
        batch = setting.batch
        positions = predicted_positions(batch)
        counts = ItemCounts(torch.tensor(len(positions)), batch.attention_mask.sum())
        need = objective.need
        outputs = [teacher.score(batch, positions, need=need) for teacher in teachers] if need else []
        setting.update(model(batch, positions, outputs, counts).loss)
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return step


def steps_of(setting: Setting, methods: Sequence[str]) -> tuple[dict[str, Step], dict[str, str]]:
    """Steps that ran once (which compiles, and allocates AdamW's state), and why the others did not."""
    steps: dict[str, Step] = {}
    skipped: dict[str, str] = {}
    for method in methods:
        setting.forget_gradients()
        try:
            step = method_step(setting, method)
            step()
        except Exception as error:  # a method may ask for anything; the others are to be measured all the same
            skipped[method] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        else:
            steps[method] = step
    return steps, skipped


def figures(samples: Samples) -> dict[str, Any]:
    """Of each method: time and peak, and both as multiples of the base."""
    return {
        name: {
            "time_s": median_seconds(taken),
            "time_vs_kd": time_ratio(samples, name, BASE),
            "peak_mb": peak_mb(taken),
            "peak_vs_kd": peak_ratio(samples, name, BASE),
        }
        for name, taken in samples.items()
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print; the last line is JSON."""
    options = _parse(arguments)
    torch.manual_seed(0)
    setting = build_setting(
        num_teachers=options.teachers, sequences=options.sequences, tokens=options.tokens, quick=options.quick
    )
    sizes = {"student": num_parameters(setting.student), "teacher": num_parameters(setting.teachers[0])}
    shape = list(setting.batch.input_ids.shape)
    print(f"{torch.get_num_threads()} threads, batch {shape}, {options.teachers} teachers, parameters {sizes}")
    print(describe_memory_check(), flush=True)
    steps, skipped = steps_of(setting, list(dict.fromkeys([BASE, *(options.only or METHODS)])))
    until = QUICK_SECONDS if options.quick else float("inf")
    calls: Mapping[str, Callable[[], object]] = steps
    samples = take_turns(calls, rounds=options.rounds, before=setting.forget_gradients, until=until)
    methods = figures(samples)
    _print_table(methods, skipped)
    setup = {
        "batch": shape,
        "parameters": sizes,
        "teachers": options.teachers,
        "quick": options.quick,
        "threads": torch.get_num_threads(),
    }
    rounds = len(samples[BASE])
    print(json.dumps(rounded({"rounds": rounds, "methods": methods, "skipped": skipped, "setup": setup})))


def _print_table(methods: Mapping[str, Mapping[str, float | None]], skipped: Mapping[str, str]) -> None:
    print(f"\n{'':22}{'time s':>9}{'x kd':>8}{'peak MB':>9}{'x kd':>8}")
    for name, row in methods.items():
        cells = [float("nan") if value is None else value for value in row.values()]
        print(f"{name:22}{cells[0]:9.3f}{cells[1]:8.2f}{cells[2]:9.0f}{cells[3]:8.2f}")
    for name, reason in skipped.items():
        print(f"{name:22} left out: {reason}")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A whole step of each method, against plain distillation.")
    parser.add_argument("--quick", action="store_true", help="pico models and fewer rounds")
    parser.add_argument("--teachers", type=int, default=2)
    parser.add_argument("--sequences", type=int, default=1)
    parser.add_argument("--tokens", type=int, help="of a block (512; quick: 64)")
    parser.add_argument("--rounds", type=int, help="rounds, at most (7; quick: 3)")
    parser.add_argument("--only", choices=list(METHODS), nargs="+", help="these methods, and kd")
    options = parser.parse_args(arguments)
    options.tokens = options.tokens or (64 if options.quick else 512)
    options.rounds = options.rounds or (3 if options.quick else 7)
    return options


if __name__ == "__main__":
    main()
