"""`evaluation.json` holds what was measured and nothing else; whoever reads it gets back what was written."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from collegium.base.errors import DataError
from collegium.report.evaluation import Evaluation
from collegium.report.evaluation_file import (
    as_content,
    evaluation_of,
    evaluation_text,
    read_evaluation,
    save_evaluation,
    stored_cost,
    stored_lineage,
)
from collegium.report.interval import Difference, Interval
from tests.support import made_up_lineage, made_up_run
from tests.support.typed_strategies import built


NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
ENDS = NUMBERS | st.just(math.nan)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | NUMBERS | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)
NAMES = st.sampled_from(["own", "all", "common", "fused", "student", "before", "mean", "teacher/x", "", "\u00e9"])

LEAVES = {
    float: NUMBERS,
    str: NAMES,
    object: PLAIN,
    Interval: st.builds(Interval, ENDS, ENDS, ENDS),
    Difference: st.builds(Difference, ENDS, ENDS, ENDS, ENDS),
}


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(built(Evaluation, LEAVES))
def test_what_is_written_is_read(evaluation):
    text = evaluation_text(evaluation)
    assert evaluation_of(json.loads(text)) == evaluation
    assert "NaN" not in text.replace('"NaN"', "") and "Infinity" not in text


def test_a_file_is_read_as_it_was_written(tmp_path):
    made = evaluation_of(made_up_run.evaluation())
    save_evaluation(made, tmp_path)
    assert read_evaluation(tmp_path) == made
    assert as_content(made)["schema_version"] == 1
    lines = (tmp_path / "evaluation.json").read_text().splitlines()
    assert any(line.startswith('"documents": {') and line.endswith("},") for line in lines)  # for programs


def test_a_mean_that_is_not_known_is_null():
    """A domain whose documents predict nothing has no mean, and JSON has no NaN."""
    evaluation = evaluation_of(made_up_run.evaluation())
    text = evaluation_text(replace(evaluation, mean=replace(evaluation.mean, nll=math.nan)))
    content = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert content["mean"]["nll"] is None
    assert evaluation_of(content).mean.nll is None or math.isnan(evaluation_of(content).mean.nll)


def test_a_teacher_is_never_mistaken_for_anything_else():
    content = made_up_run.evaluation()
    content["mean"]["teachers"] = {"own": {"kl": 1.32}, "common": {"kl": 1.5}}
    content["mean"]["kl/own"] = 1.051
    made = evaluation_of(content)
    assert (made.mean.kl_own, made.mean.kl_common) == (1.051, 0.3)
    assert (made.mean.teacher("own").kl, made.mean.teacher("common").kl) == (1.32, 1.5)


def damaged(tmp_path, **changes) -> str:
    content = {k: v for k, v in {**made_up_run.evaluation(), **changes}.items() if v is not None}
    (tmp_path / "evaluation.json").write_text(json.dumps(content))
    with pytest.raises(DataError) as caught:
        read_evaluation(tmp_path)
    assert f"measure it again: collegium evaluate {tmp_path}" in str(caught.value)
    return str(caught.value)


def test_a_file_of_another_version_says_how_to_measure_again(tmp_path):
    old = damaged(tmp_path, schema_version=None)
    assert "was written by an earlier version of collegium, without a schema_version" in old
    newer = damaged(tmp_path, schema_version=99)
    assert "was written by another version of collegium, with schema_version 99; this one reads 1" in newer


def test_a_damaged_file_says_where(tmp_path):
    assert "is damaged (mean.nll: " in damaged(tmp_path, mean={"nll": "many"})
    assert "is damaged (unheard: " in damaged(tmp_path, unheard=1)
    assert "is damaged (held_out: " in damaged(tmp_path, held_out=None)
    assert "measures nothing" in damaged(tmp_path, domains={})
    for text in ("", "{", "[]", "\x00", '"text"'):
        (tmp_path / "evaluation.json").write_text(text)
        with pytest.raises(DataError, match=r"is damaged, it .*; measure it again: collegium evaluate"):
            read_evaluation(tmp_path)


def test_a_folder_without_one(tmp_path):
    with pytest.raises(DataError, match=r"holds no evaluation\.json; give the folder of a finished run"):
        read_evaluation(tmp_path)
    assert stored_cost(tmp_path) is None and stored_lineage(tmp_path) is None


def test_cost_and_lineage_of_any_version_are_kept(tmp_path):
    content = made_up_run.evaluation() | {"lineage": made_up_lineage.lineage()}
    del content["schema_version"], content["mean"]
    (tmp_path / "evaluation.json").write_text(json.dumps(content))
    assert stored_cost(tmp_path).actual.seconds == {"training": 90.0, "evaluation": 15.0}
    assert stored_lineage(tmp_path) == made_up_lineage.lineage()
    (tmp_path / "evaluation.json").write_text('{"cost": 3, "lineage": []}')
    assert stored_cost(tmp_path) is None and stored_lineage(tmp_path) is None


def test_an_interval_is_written_in_one_way():
    interval = Interval(0.12345, -0.5, 1.0)
    assert interval.shown(3) == "0.123" and interval.shown(2, sign="+") == "+0.12"
    assert interval.ends(2, between=" to ") == "-0.50 to 1.00" and interval.with_ends(1) == "0.1 [-0.5, 1.0]"
    alone = Interval(1.0)
    assert not alone.has_ends and alone.is_known and not Interval(math.nan).is_known
    assert alone.ends(2, between=", ") == "not known, not known"
    assert alone == Interval(1.0, math.nan, math.nan) != Interval(1.0, 0.5, math.nan)
    assert Interval(1.0, 0.0, 2.0) != Difference(1.0, 0.0, 2.0)
    assert Difference(1.0, -1.0, 3.0, 0.3).may_be_chance(0.95) and not Difference(1.0).may_be_chance(0.95)
