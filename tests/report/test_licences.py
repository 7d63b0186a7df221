"""Which licences agree, and which bind whoever passes a student on."""

import pytest

from collegium.report.card.licences import judge, models_in, normalized, obstacles, student_licence
from tests.support.made_up_lineage import lineage, teacher


@pytest.mark.parametrize(
    ("licence", "verdict"),
    [
        ("Apache-2.0", "permissive"),
        ("Apache License 2.0", "permissive"),
        ("ODC-BY", "permissive"),
        ("gemma", "restricts"),
        ("Gemma Terms of Use", "restricts"),
        ("llama3.1", "restricts"),
        ("openrail++", "restricts"),
        ("bigscience-bloom-rail-1.0", "restricts"),
        ("cc-by-nc-4.0", "restricts"),
        ("cc-by-nc-sa-4.0", "restricts"),
        ("cc-by-nd-4.0", "restricts"),
        ("cc-by-sa-3.0", "restricts"),
        ("CDLA-Sharing-1.0", "restricts"),
        ("agpl-3.0", "restricts"),
        ("BBC news: research use", "restricts"),
        ("mit, gemma", "restricts"),
        ("my own terms", "unknown"),
        ("other", "unknown"),
        (None, "not stated"),
    ],
)
def test_what_a_licence_asks_for(licence, verdict):
    finding = judge(licence)
    assert finding.verdict == verdict
    assert bool(finding.reason) == (verdict != "permissive")


def test_gemma_says_that_a_student_is_a_derivative():
    assert "a student distilled from the model is a Model Derivative" in judge("Gemma Terms of Use").reason
    assert normalized("Apache License 2.0") == normalized("apache-2.0")


def test_a_student_has_the_licence_that_all_its_models_have():
    assert student_licence(lineage()) == ("apache-2.0", ["apache-2.0"])
    assert obstacles(lineage()) == []
    mixed = lineage(teachers=[teacher("one"), teacher("two", licence="mit")])
    assert student_licence(mixed) == ("other", ["apache-2.0", "mit"])
    silent = lineage(teachers=[teacher("one"), teacher("two", licence=None)])
    assert student_licence(silent) == ("other", ["apache-2.0", "not stated"])
    assert obstacles(silent) == [
        "teacher 'two' (not stated): its licence is not stated, so nothing says that a student may be passed on"
    ]


def test_where_no_model_states_a_licence_none_is_said():
    about = lineage(teachers=[teacher("one", licence=None)])
    about["student"]["licence"] = None
    assert student_licence(about) == (None, ["not stated"])


def test_random_weights_have_no_licence_adapters_and_earlier_runs_have():
    about = lineage(teachers=[teacher("one", adapter={"model": "a/b", "licence": "gemma"})])
    about["student"] |= {"kind": "config", "licence": None}
    assert [(item.what, item.licence) for item in models_in(about)] == [
        ("teacher", "apache-2.0"),
        ("adapter of teacher", "gemma"),
    ]
    later = lineage()
    later["student"] |= {"kind": "continued", "earlier": about}
    assert student_licence(later)[0] == "other"
    assert any("gemma" in line for line in obstacles(later))
