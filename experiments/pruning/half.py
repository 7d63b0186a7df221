"""Loss after a short training of SmolLM2-135M-Instruct cut down to half its parameters in several ways.

How figure 3's student was chosen: its text, 50 steps of cross-entropy, one seed, and the loss of answers on
validation documents, which neither its test documents nor the tasks' items are among. Four to six minutes a
way on one core.

    python experiments/pruning/half.py COPIES     # see experiments/tasks-small.yaml
"""

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from collegium.assembly.run import Run
from collegium.evaluation.model_figures import measure_model
from collegium.models.pretrained import load_model, place
from collegium.paper.command import specification_path
from collegium.paper.experiment import student_recipe
from collegium.paper.run_result import VALIDATION, RunResult
from collegium.paper.specification import in_folder, load_specification, with_local_files
from collegium.paper.work import as_numbers
from collegium.pipeline.run_folder import claim_run_dir
from collegium.pipeline.train import fit_student
from collegium.recipe.recipe import Recipe


RESULTS = Path(__file__).parent / "half.json"
STEPS = 50
LAYERS = {"kind": "layer_drop", "keep_layers": [0, 1, 2, 3, 4, 5, 6, 7, 8, 29]}
PRUNED = {"kind": "pruned", "depth_criterion": "block_influence", "calibration_blocks": 32}
WAYS: Mapping[str, tuple[Mapping[str, Any], bool]] = {
    "10 of 30 layers": (LAYERS, False),
    "16 layers, 880 of 1536 neurons": ({**PRUNED, "num_layers": 16, "intermediate_size": 880}, False),
    "20 layers, 600 neurons": ({**PRUNED, "num_layers": 20, "intermediate_size": 600}, False),
    "20 layers, 600 neurons, prompts learnt": ({**PRUNED, "num_layers": 20, "intermediate_size": 600}, True),
    "30 layers, 232 neurons": ({"kind": "pruned", "intermediate_size": 232, "calibration_blocks": 32}, False),
}
"""A student's section, and whether prompts are learnt."""


def recipe_of(student: Mapping[str, Any], learn_prompts: bool, copies: Path, folder: Path) -> Recipe:
    """Figure 3's student without teachers, cut in another way."""
    specification = load_specification(specification_path("small", "figure3"))
    recipe = student_recipe(with_local_files(specification, copies, folder))
    recipe |= {
        "method": "ce",
        "student": {"model": recipe["student"]["model"], **student},
        "output_dir": str(folder),
    }
    recipe["training"] |= {"max_steps": STEPS, "warmup_steps": 10, "save_every": STEPS, "learning_rate": 4e-4}
    recipe["training"]["learn_prompts"] = learn_prompts
    return Recipe.model_validate(in_folder(recipe, folder))


def measure(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Train, and measure on validation documents."""
    claim_run_dir(recipe, folder)
    run = Run(recipe, folder=folder).derive(teachers=())
    fit_student(run)
    model = place(load_model(str(folder / "student"), dtype=torch.float32), run.device).eval()
    tables = measure_model(model, run.held_out, run.vocab_size)
    result = RunResult({"tables": {name: as_numbers(table) for name, table in tables.items()}})
    return {
        "parameters": round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 1),
        "nll": round(result.mean("nll", VALIDATION), 3),
        "nll_by_task": {name: round(value, 3) for name, value in result.by_domain("nll", VALIDATION).items()},
    }


def main() -> None:
    """Measure all, print, and write `half.json` beside this file."""
    torch.set_num_threads(1)
    found = []
    for name, (student, learn_prompts) in WAYS.items():
        with tempfile.TemporaryDirectory() as folder:
            recipe = recipe_of(student, learn_prompts, Path(sys.argv[1]), Path(folder))
            found.append({"cut": name, **measure(recipe, Path(folder) / "run")})
        print(found[-1], flush=True)
    RESULTS.write_text(json.dumps({"steps": STEPS, "students": found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
