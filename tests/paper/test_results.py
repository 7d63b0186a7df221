"""Results of finished runs: differences, their significance, and JSON that every reader takes."""

import json
import math
from types import SimpleNamespace

import pytest

from collegium.evaluation.statistics import holm
from collegium.paper.experiment import Experiment, Row, plan
from collegium.paper.results import collect
from collegium.paper.run_result import TEST, RunResult
from tests.support.tiny_experiment import outcome, specification, table


def experiment_of(*names, headline=True, judges=()):
    rows = [
        Row(
            name,
            name.upper(),
            "rows",
            {"data.block_size": 16 + i},
            headline,
            judge=dict(judges).get(name, "experts"),
        )
        for i, name in enumerate(names)
    ]
    return Experiment("made-up", "Made up", lambda best: rows, (), judges={"experts": {}, "other": {}})


class Made:
    """Collects made-up results: the loss of each row by seed, and how much documents differ by chance."""

    def __init__(self, folder, losses, *, documents=40, judges=(), **changes):
        seeds = len(next(iter(losses.values())))
        self.specification = specification(folder, learning_rates=[0.1], headline_seeds=seeds)
        self.experiment = experiment_of(*losses, judges=judges)
        self.plan = plan(self.experiment, self.specification, lambda run: 1.0)
        self.results = {}
        for name, runs in self.plan.runs.items():
            for run in runs:
                number = 100 * sorted(losses).index(name) + run.seed
                tables = {
                    domain: table(documents, number, nll=losses[name][run.seed], noise=0.02)
                    for domain in ("cats", "dogs")
                }
                self.results[run.key] = RunResult(outcome(tables, **changes))

    def collect(self, **changes):
        given = {"targets": {}, "made": {}, "seconds": 3.0, **changes}
        got = collect(self.experiment, self.specification, self.plan, self.results.__getitem__, **given)
        return SimpleNamespace(content=got, rows={row["name"]: row for row in got["rows"]})


def test_local_copies_are_named_beside_what_they_are_copies_of(tmp_path):
    made = Made(tmp_path, {"ours": [3.0]})
    domain, source = next(iter(made.specification.sources.items()))
    got = made.collect(origins={domain: {"dataset": "someone/cats", "config": "en", "task": "qa"}})
    said = got.content["text"][domain]["source"]
    assert said == {"dataset": "someone/cats", "config": "en", "path": source["path"]}


def test_rows_say_what_was_measured(tmp_path):
    made = Made(tmp_path, {"ours": [3.0, 3.1, 3.2], "ce": [3.3, 3.4, 3.5]})
    row = made.collect().rows["ce"]
    runs = made.plan.measured("ce")
    losses = [made.results[run.key].mean("nll", TEST) for run in runs]
    mean = sum(losses) / 3
    spread = math.sqrt(sum((x - mean) ** 2 for x in losses) / 2)
    nll = row["figures"]["nll"]
    assert nll["values"] == pytest.approx(losses, rel=1e-5)
    assert (nll["mean"], nll["sd"]) == pytest.approx((mean, spread), rel=1e-4)
    assert nll["high"] - nll["mean"] == pytest.approx(4.302653 * spread / math.sqrt(3), rel=1e-4)
    perplexity = row["figures"]["perplexity"]["mean"]
    assert perplexity == pytest.approx(sum(math.exp(x) for x in losses) / 3, rel=1e-5)
    assert (row["seeds"], row["runs"]) == ([0, 1, 2], [run.key for run in runs])
    assert set(row["figures"]) >= {"kl/expert", "kl/common", "accuracy", "bits_per_byte", "ece"}
    assert "kl/own" not in row["figures"]


def test_differences_are_to_the_baseline_seed_by_seed(tmp_path):
    made = Made(tmp_path, {"ours": [3.0, 3.3, 3.1], "ce": [3.2, 3.4, 3.5]})
    rows = made.collect().rows
    assert rows["ours"]["against_baseline"] is None
    against = rows["ce"]["against_baseline"]
    pairs = zip(rows["ce"]["figures"]["nll"]["values"], rows["ours"]["figures"]["nll"]["values"], strict=True)
    expected = sum(a - b for a, b in pairs) / 3
    assert against["over_seeds"]["value"] == pytest.approx(expected, abs=1e-5)
    assert against["over_documents"]["value"] == pytest.approx(expected, abs=1e-5)


def test_holm_is_over_all_rows_and_takes_the_larger_p_value(tmp_path):
    losses = {"ours": [3.0, 3.1, 3.05], "a": [3.02, 3.13, 3.06], "b": [3.2, 3.3, 3.26], "c": [3.0, 3.12, 3.0]}
    rows = Made(tmp_path, losses).collect().rows
    found = [rows[name]["against_baseline"] for name in "abc"]
    worst = [max(row["over_seeds"]["p_value"], row["over_documents"]["p_value"]) for row in found]
    assert [row["p_holm"] for row in found] == pytest.approx(holm(worst).tolist(), rel=1e-4)
    assert [row["significant"] for row in found] == [p < 0.05 for p in holm(worst)]
    assert {row["significant"] for row in found} == {True, False}


def test_significance_needs_documents_and_seeds(tmp_path):
    """Documents say that `noisy` differs, seeds that it may be chance."""
    rows = Made(tmp_path, {"ours": [3.0, 3.0, 3.0], "noisy": [3.6, 2.98, 3.1]}).collect().rows
    against = rows["noisy"]["against_baseline"]
    assert against["over_documents"]["p_value"] < 0.01
    assert against["over_seeds"]["p_value"] > 0.05
    assert not against["significant"]


def test_rows_that_other_text_measures_are_not_compared(tmp_path):
    made = Made(tmp_path, {"ours": [3.0, 3.1], "else": [3.2, 3.35]}, judges=[("else", "other")])
    assert made.collect().rows["else"]["against_baseline"] is None


def test_one_seed_says_nothing_of_chance_and_is_json(tmp_path):
    got = Made(tmp_path, {"ours": [3.0], "ce": [5.0]}).collect()
    against = got.rows["ce"]["against_baseline"]
    assert (against["over_seeds"]["p_value"], against["p_holm"], against["significant"]) == (None, None, False)
    assert got.rows["ce"]["figures"]["nll"]["sd"] is None
    json.dumps(got.content, allow_nan=False)


def test_a_table_of_the_baseline_alone(tmp_path):
    got = Made(tmp_path, {"ours": [3.0, 3.1]}).collect()
    assert [row["against_baseline"] for row in got.content["rows"]] == [None]


def test_what_is_no_number_is_none_wherever_it_came_from(tmp_path):
    made = Made(tmp_path, {"ours": [3.0, 3.1]}, documents=2)  # one document for the test: no interval over them
    got = made.collect(made={"cats": {"nll": {"value": 2.0, "low": math.nan, "high": math.inf}}})
    assert got.content["teachers"]["made"]["cats"]["nll"] == {"value": 2.0, "low": None, "high": None}
    json.dumps(got.content, allow_nan=False)


def test_continuations_are_averaged_over_seeds(tmp_path):
    made = Made(tmp_path, {"ours": [3.0, 3.1]}, continuations={"bleu_reference": 4.0})
    assert made.collect().rows["ours"]["figures"]["bleu_reference"]["mean"] == 4.0
    without = Made(tmp_path, {"ours": [3.0, 3.1]}).collect()
    assert "bleu_reference" not in without.rows["ours"]["figures"]


def test_targets_are_means_over_domains(tmp_path):
    def sums(*values):
        odd = [v for value in values for v in (99.0, value)]  # even numbers are for validation
        return {
            "tokens": [2] * len(odd),
            "bytes": [1] * len(odd),
            "figures": {"rule/ours/nll": odd, "teacher/cats/nll": odd},
        }

    got = Made(tmp_path, {"ours": [3.0, 3.1]}).collect(targets={"cats": sums(2.0, 4.0), "dogs": sums(1.0, 3.0)})
    expected = {"cats": 1.5, "dogs": 1.0, "mean": 1.25, "perplexity": round(math.exp(1.25), 2)}
    assert got.content["teachers"]["fused"] == {"ours": expected}
    assert got.content["teachers"]["alone"] == {"cats": expected}
