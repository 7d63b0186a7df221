"""Results of experiments in the form that `collegium reproduce` writes, with figures that a test chooses."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from collegium.paper.measured import Measured
from collegium.paper.spread import over_seeds


DOMAINS = ("web", "code")

EFFECTS = (0.0, 0.01, -0.01)
"""What each seed adds to a loss, the same in all rows."""


def spread(values: Sequence[float]) -> dict[str, Any]:
    """A figure over seeds."""
    found = over_seeds(list(values))
    return {"mean": found.mean, "sd": None, "low": found.low, "high": found.high, "values": list(values)}


def made_row(name: str, group: str, perplexity: float, seeds: int = 3, **changes: Any) -> dict[str, Any]:
    """A row of that perplexity, with a difference to ours that is significant."""
    nll = [math.log(perplexity) + effect for effect in EFFECTS[:seeds]]
    figures = {
        "nll": nll,
        "perplexity": [math.exp(value) for value in nll],
        "bits_per_byte": [value / 3 for value in nll],
        "accuracy": [0.25] * seeds,
        "ece": [0.0225] * seeds,
        "kl/common": [value / 5 for value in nll],
        "bleu_reference": [2.5] * seeds,
    }
    test = {"value": 0.1, "low": 0.05 if seeds > 1 else None, "high": 0.15 if seeds > 1 else None, "p_value": 0.01}
    row = {
        "name": name,
        "label": name.replace("_", " "),
        "group": group,
        "headline": True,
        "judge": "experts",
        "learning_rate": 0.004,
        "learning_rate_of": None,
        "seeds": list(range(seeds)),
        "runs": ["0"] * seeds,
        "steps": 10,
        "figures": {figure: spread(values) for figure, values in figures.items()},
        "against_baseline": {
            "over_seeds": test,
            "over_documents": {"value": 0.1, "low": 0.02, "high": 0.12, "p_value": 0.001},
            "p_holm": 0.02 if seeds > 1 else None,
            "significant": seeds > 1,
        },
    }
    return {**row, **({"against_baseline": None} if name == "ours" else {}), **changes}


def made_experiment(name: str, rows: Sequence[Mapping[str, Any]], **changes: Any) -> Measured:
    """An experiment of these rows."""
    text = {
        domain: {
            "source": {"path": f"{domain}.txt"},
            "licence": "CC0",
            "test_documents": 7,
            "test_tokens": 1234,
            "validation_documents": 8,
        }
        for domain in DOMAINS
    }
    content = {
        "experiment": name,
        "title": name,
        "scale": "made-up",
        "about": "Two teachers that do not exist.",
        "specification": "0123456789abcdef",
        "baseline": "ours",
        "versions": {"torch": "1.0"},
        "seconds": 3700,
        "student_tokens": 2000,
        "text": text,
        "teachers": {"made": {}, "alone": {}, "fused": {}},
        "rows": list(rows),
    }
    return Measured({**content, **changes})


def made_table1(**perplexities: float) -> Measured:
    """Our rule at 20, others at 25 unless given."""
    names = {"ce": 25.0, "best_single": 25.0, "tinybert": 25.0, "mobilebert": 25.0, "minilm": 25.0, "dkd": 25.0}
    names |= {"uniform": 25.0, "paper": 24.0, "ours": 20.0} | perplexities
    groups = {"uniform": "Several teachers", "paper": "Several teachers", "ours": "Several teachers"}
    alone = {"web": {"web": 3.0, "code": 4.0, "mean": 3.5, "perplexity": 33.12}}
    rows = [made_row(name, groups.get(name, "Baselines"), value) for name, value in names.items()]
    return made_experiment("table1", rows, teachers={"made": {}, "alone": alone, "fused": alone})


def made_figure2(last: float = 20.0) -> Measured:
    """Two teachers of a domain each, three copies, and a bad one."""
    domains = {"ours": last, "uniform": 22.0, "paper": 22.0, "one": 26.0, "ours_2": 23.0, "uniform_2": 24.0}
    rows = [made_row(name, "domains", value) for name, value in domains.items()]
    rows += [made_row(f"copies_{n}", "copies", 26.0 - n, against_baseline=None) for n in (1, 2, 3)]
    rows += [
        made_row(f"bad_{rule}", "bad", value) for rule, value in (("uniform", 30.0), ("raw", 28.0), ("ours", 21.0))
    ]
    return made_experiment("figure2", rows)


def made_conditions() -> Measured:
    """One or two rows of each condition."""
    rows = [made_row(name, "text", 22.0) for name in ("ce", "ours", "uniform", "paper")]
    rows += [made_row(f"{name}_{n}", "text", 30.0 - n / 500) for n in (500, 4000) for name in ("ce", "ours")]
    rows += [made_row(f"weighting_{index}", "weighting", 24.0 + index) for index in range(2)]
    rows += [made_row(f"sharp_{name}", "overconfident", 27.0) for name in ("uniform", "raw", "fitted")]
    rows += [
        made_row(f"switching_{name}", "switching", 29.0, against_baseline=None) for name in ("uniform", "token")
    ]
    return made_experiment(
        "conditions", [*rows, *(made_row(f"cache_{n}", "cache", 23.0, seeds=1) for n in (0, 1))]
    )


def made_figure3(student: float = 0.78, size: int = 40) -> Measured:
    """Two sets, a specialist of each that scores 0.8, one student that they teach and one that nobody does."""
    kinds = {"sst2": "sentiment", "sciq": "qa"}

    def scored(value: float) -> dict[str, float]:
        return {"value": value, "low": value - 0.01, "high": value + 0.01}

    def row(name: str, score: float) -> dict[str, Any]:
        values = [score, score + 0.002, score - 0.002]
        test = {"value": score - 0.8, "low": score - 0.83, "high": score - 0.77, "p_value": 0.01, "p_holm": 0.03}
        items = {"value": score, "low": score - 0.003, "high": score + 0.003}
        scores = {task: {**spread(values), "items": items, "to_specialist": test} for task in kinds}
        apart = {"value": score - student, "low": score - student - 0.05, "high": score - student + 0.03}
        against = {f"over_{what}": {**apart, "p_value": 0.02} for what in ("seeds", "items")}
        items_kept = {"value": score / 0.8, "low": (score - 0.01) / 0.8, "high": (score + 0.003) / 0.8}
        kept = {**spread([value / 0.8 for value in values]), "items": items_kept}
        return made_row(
            name,
            "Students",
            20.0,
            tasks=scores,
            tasks_mean=spread(values),
            kept=kept,
            tasks_against_baseline=None if name == "ours" else against,
        )

    tasks = {
        name: {
            "task": kind,
            "primary": "accuracy",
            "items": 400,
            "baselines": {"random": 0.25},
            "teachers": {f"knows_{task}": scored(0.8 if task == name else 0.3) for task in kinds},
            "specialist": f"knows_{name}",
        }
        for name, kind in kinds.items()
    }
    parameters = {"student": size, "specialist": 100}
    return made_experiment(
        "figure3", [row("ours", student), row("ce", 0.6)], tasks=tasks, parameters=parameters, text={}
    )
