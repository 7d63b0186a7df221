"""One overconfident teacher takes the weights: how far fitted temperatures repair the fused target.

Pre-flights only, no student: the loss of each fused target on held-out text. `sharp` divides the logits of one
teacher by 1/3 for both purposes, which makes it overconfident. Fitted temperatures are relative to its own logits,
so they do not know how sharp it was made: `sharp, fitted` shows the remaining effect. Needs the
teachers of `experiments/incremental/run.py` in `runs/incremental`; takes about a minute:

    python experiments/calibration/run.py
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from collegium.pipeline.preflight.judge import preflight
from collegium.recipe.file import load_recipe


HERE = Path(__file__).parent
TEACHERS = ("code", "wiki", "stories")
SHARP = 1 / 3


def overrides(weight: Any = 1.0, target: Any = 1.0, *, sharp: bool = False, home: bool = False) -> list[str]:
    """Temperatures of all teachers; `sharp` multiplies the first one's logits by three where none is fitted."""
    changes = []
    for index, name in enumerate(TEACHERS):
        factor = SHARP if sharp and index == 0 else 1.0
        for key, value in (("weight", weight), ("target", target)):
            number = value if value == "fit" else value * factor
            changes.append(f"teachers.{index}.{key}_temperature={number}")
        if home:
            changes.append(f"teachers.{index}.target_domain={name}")
    return changes


CASES = {
    "as trained": overrides(),
    "as trained, weight fitted": overrides("fit"),
    "as trained, weight fitted, target fitted at home": overrides("fit", "fit", home=True),
    "as trained, both fitted on the mixture": overrides("fit", "fit"),
    "one sharp": overrides(sharp=True),
    "one sharp, weight fitted": overrides("fit", sharp=True),
}


def main() -> None:
    """Every case, one after another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=HERE / "results.json")
    options = parser.parse_args()
    results = {}
    for case, changes in CASES.items():
        report, _ = preflight(load_recipe(HERE / "recipe.yaml", changes), with_estimate=False)
        results[case] = {
            "rules": {name: rounded(row) for name, row in report.rules.items()},
            "oracle": rounded(report.oracle),
            "teachers": {name: rounded(row) for name, row in report.teachers.items()},
            "gap": {name: rounded(row) for name, row in report.calibration_gap.items()},
            "temperatures": {
                name: {key: rounded(asdict(fit)) for key, fit in fits.items()}
                for name, fits in report.temperatures.items()
            },
        }
        print(case, json.dumps({name: row["mean"] for name, row in results[case]["rules"].items()}), flush=True)
    options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def rounded(row: dict[str, Any]) -> dict[str, Any]:
    """Four digits."""
    return {name: round(value, 4) for name, value in row.items()}


if __name__ == "__main__":
    main()
