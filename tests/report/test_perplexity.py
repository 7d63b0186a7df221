"""Losses whose exponential no float can hold end nothing: not a measurement, not a sentence, not a page."""

import ast
import json
import math
from pathlib import Path

import pytest
import torch

import collegium
from collegium.evaluation.language_modeling import DocumentSums
from collegium.evaluation.summary import summarize
from collegium.report.evaluation import Evaluation, HeldOutText
from collegium.report.evaluation_file import evaluation_text, read_evaluation, save_evaluation
from collegium.report.figures import Differences, PairedDifferences, StudentFigures, StudentMeasured
from collegium.report.interval import Difference
from collegium.report.perplexity import perplexity_of, shown_perplexity
from collegium.report.words import verdict


PACKAGE = Path(collegium.__file__).parent
EXPONENTIALS_OF_OTHER_THINGS = {
    "report/perplexity.py": 1,
    "evaluation/domain_mixing.py": 1,  # of a loss that is cut off at 700 nats
    "evaluation/passages.py": 1,  # of log-probabilities
    "losses/calibration.py": 4,  # of bounds
}


def test_perplexities_without_an_end():
    assert perplexity_of(math.log(20.0)) == pytest.approx(20.0)
    assert perplexity_of(710.0) == perplexity_of(1e9) == math.inf
    assert math.isnan(perplexity_of(math.nan))
    assert shown_perplexity(1e5) == "beyond all numbers"


def test_no_other_place_takes_the_exponential_of_a_loss():
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        count = sum(ast.unparse(call.func) in ("math.exp", "math.expm1") for call in calls)
        if count:
            found[path.relative_to(PACKAGE).as_posix()] = count
    assert found == EXPONENTIALS_OF_OTHER_THINGS, "take `perplexity_of`, or say here what is taken"


def test_an_evaluation_of_a_student_that_is_lost(tmp_path):
    tokens = torch.tensor([3.0, 2.0])
    table = DocumentSums(tokens, torch.tensor([9.0, 4.0]), {"nll": torch.tensor([4e3, 5e3])})
    measured = summarize({"a": table}, confidence=0.95, num_samples=50, seed=0)
    assert measured.mean.perplexity == math.inf
    gap = Difference(1800.0, 1700.0, 1900.0, 0.01)
    evaluation = Evaluation(
        recipe="r",
        model="student",
        held_out=HeldOutText(8),
        confidence=0.95,
        domains=measured.domains,
        mean=measured.mean,
        before=StudentMeasured({}, StudentFigures(nll=2.0)),
        differences=Differences(before=PairedDifferences(gap)),
    )
    assert "beyond all numbers in perplexity" in verdict(evaluation)[0]

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    json.loads(evaluation_text(evaluation), parse_constant=refuse)
    save_evaluation(evaluation, tmp_path)
    assert read_evaluation(tmp_path).mean.perplexity is None
