"""The page of results agrees with the JSON that it is made of, and claims are decided as they say."""

import json
import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from collegium.base.digests import unsealed
from collegium.base.errors import DataError, RecipeError
from collegium.paper.claims import BEATEN, PUBLISHED, claims_of
from collegium.paper.command import EXPERIMENTS as RUNNABLE
from collegium.paper.command import reproduce
from collegium.paper.experiment import Experiment
from collegium.paper.markdown import GROUPS, REFERENCES, group_rows, group_table
from collegium.paper.measured import EXPERIMENTS, Measured, read_results
from collegium.paper.page import MARKED, publish, refresh, render_page
from collegium.paper.plots import draw_all, fingerprint
from collegium.paper.specification import load_specification
from collegium.paper.spread import Spread, over_seeds
from tests.support.made_up_results import (
    EFFECTS,
    made_conditions,
    made_experiment,
    made_figure2,
    made_figure3,
    made_row,
    made_table1,
)


ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "experiments" / "results"
PAGE = ROOT / "docs" / "results.md"
MARKERS = "# A page\n\n<!-- results: conditions/overconfident -->\nold\n<!-- end -->\nText.\n"


def committed() -> dict[str, Measured]:
    found = read_results(RESULTS)
    if not found:
        pytest.skip("no results are committed yet")
    return found


def everything() -> dict[str, Measured]:
    return {
        "table1": made_table1(),
        "figure2": made_figure2(),
        "figure3": made_figure3(),
        "conditions": made_conditions(),
    }


def write(results: dict[str, Measured], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, measured in results.items():
        (folder / f"{name}.json").write_text(json.dumps(measured.content))


def claim(results: Measured, start: str):
    found = [claim for claim in claims_of(results) if claim.text.startswith(start)]
    assert len(found) == 1, [claim.text for claim in claims_of(results)]
    return found[0]


def without(results: Measured, *names: str) -> Measured:
    rows = [row.content for row in results.rows if row.name not in names]
    return Measured({**results.content, "rows": rows})


def with_one_seed(results: Measured) -> Measured:
    def row(given):
        return made_row(given.name, given.group, given.by_seed("perplexity")[0], seeds=1)

    return Measured({**results.content, "rows": [row(given) for given in results.rows]})


class TestWhatIsCommitted:
    def test_the_page_agrees_with_the_results(self):
        results = committed()
        assert PAGE.read_text(encoding="utf-8") == render_page(results, PAGE.stem)

    def test_the_figures_are_of_these_results(self):
        for name, measured in committed().items():
            text = (PAGE.with_suffix("") / f"{name}.svg").read_text(encoding="utf-8")
            assert f"results {fingerprint(measured)}" in text

    def test_tables_between_markers_agree_with_the_results(self):
        results = committed()
        for path in sorted(PAGE.parent.glob("*.md")):
            text = path.read_text(encoding="utf-8")
            assert refresh(text, results, path.name) == text, f"{path.name}: run `collegium reproduce page`"

    def test_our_rule_is_the_one_that_validation_text_chose(self):
        results = committed()
        if "conditions" not in results:
            pytest.skip("the weightings were not compared yet")
        rows = group_rows(results["conditions"], "weighting")
        count = min(len(row.seeds) for row in rows)
        values = {row.name: list(row.by_seed("validation_perplexity").values()) for row in rows}
        losses = {name: sum(map(math.log, of_row[:count])) for name, of_row in values.items()}
        assert len(losses) > 10 and min(losses, key=losses.__getitem__) == "ours"


class TestChanges:
    def test_change_is_paired_by_seed(self):
        first = made_row("a", "g", 20.0)
        other = made_row("b", "g", 25.0)
        other["seeds"] = [2, 0, 1]
        results = made_experiment("figure2", [first, other])
        values = first["figures"]["perplexity"]["values"]
        others = other["figures"]["perplexity"]["values"]
        expected = [values[0] / others[1] - 1, values[1] / others[2] - 1, values[2] / others[0] - 1]
        assert results.change("perplexity", "a", "b") == over_seeds(expected)

    def test_the_same_effect_of_a_seed_cancels(self):
        change = made_table1().change("perplexity", "ours", "ce")
        assert change.mean == pytest.approx(-0.2)
        assert change.low == pytest.approx(-0.2) and change.high == pytest.approx(-0.2)

    def test_interval_is_students(self):
        spread = over_seeds([1.0, 2.0, 3.0])
        half = 4.302653 / math.sqrt(3.0)  # t of two degrees of freedom
        assert (spread.low, spread.high) == pytest.approx((2.0 - half, 2.0 + half), rel=1e-6)

    def test_what_is_missing_is_none(self):
        results = made_table1()
        assert results.change("perplexity", "ours", "nobody") is None
        assert results.change("nothing", "ours", "ce") is None
        assert over_seeds([2.0]) == Spread(2.0, None, None)


class TestTable1:
    def test_beaten_baselines(self):
        claims = [claim for claim in claims_of(made_table1()) if claim.text.startswith("Our rule has")]
        assert len(claims) == len(BEATEN)
        assert all(claim.holds for claim in claims)

    def test_a_better_baseline_is_not_beaten(self):
        results = made_table1()
        results.row("uniform").content["against_baseline"]["over_seeds"] = {"value": -0.1}
        assert claim(results, "Our rule has a lower perplexity than uniform").holds is False

    def test_chance_is_no_win(self):
        results = made_table1()
        results.row("dkd").content["against_baseline"]["p_holm"] = 0.06
        found = claim(results, "Our rule has a lower perplexity than DKD")
        assert found.holds is False and "chance" in found.why

    def test_one_seed_says_nothing(self):
        claims = claims_of(with_one_seed(made_table1()))
        assert {claim.holds for claim in claims} == {None}
        assert {(claim.low, claim.high) for claim in claims} == {(None, None)}

    @pytest.mark.parametrize(("worst", "holds"), [(25.0, True), (23.0, False)])
    def test_worst_of_the_published(self, worst, holds):
        results = made_table1(tinybert=21.0, mobilebert=worst, minilm=22.0, dkd=21.5, ce=40.0)
        found = claim(results, "Perplexity relative to the worst")
        assert "MobileBERT" in found.text
        assert found.measured == pytest.approx(20.0 / worst - 1.0)
        assert found.holds is holds

    def test_a_mean_that_reaches_it_is_not_enough(self):
        results = made_table1()
        values = [25.0, 30.0, 25.0]
        for name in PUBLISHED:
            results.row(name).content["figures"]["perplexity"] |= {"mean": 26.7, "values": values}
        found = claim(results, "Perplexity relative to the worst")
        assert found.measured < -0.158 < found.high
        assert found.holds is None

    def test_a_baseline_that_is_missing(self):
        found = claim(without(made_table1(), "dkd"), "Perplexity relative to the worst")
        assert found.holds is None and "3 of 4" in found.why
        assert claim(without(made_table1(), *PUBLISHED), "Perplexity relative").measured is None

    @pytest.mark.parametrize(("perplexity", "holds"), [(24.0, True), (25.0, False), (26.0, False)])
    def test_papers_weights(self, perplexity, holds):
        assert claim(made_table1(paper=perplexity), "The paper's weights").holds is holds

    def test_what_cannot_be_compared_has_no_verdict(self):
        claims = claims_of(made_table1())
        assert [c.holds for c in claims if c.text.startswith(("Distillation loss", "BLEU"))] == [None] * 3


class TestFigure2:
    @pytest.mark.parametrize(("last", "holds"), [(20.0, True), (22.0, False)])
    def test_more_teachers(self, last, holds):
        found = claim(made_figure2(last), "Perplexity of all teachers against one, each of a domain")
        assert found.measured == pytest.approx(last / 26.0 - 1.0)
        assert found.holds is holds

    def test_kl(self):
        found = claim(made_figure2(), "KL to the common target of all teachers against one, each of a domain")
        expected = [(math.log(20) + e) / (math.log(26) + e) - 1 for e in EFFECTS]
        assert found.measured == pytest.approx(sum(expected) / 3)
        assert found.holds is False

    def test_copies_are_counted(self):
        found = claim(made_figure2(), "Perplexity of all teachers against one, copies")
        assert found.measured == pytest.approx(23.0 / 25.0 - 1.0)

    def test_a_bad_teacher_costs(self):
        costs = [c.measured for c in claims_of(made_figure2()) if c.text.startswith("What a bad")]
        assert costs == pytest.approx([30 / 22 - 1, 28 / 20 - 1, 21 / 20 - 1])


class TestFigure3:
    @pytest.mark.parametrize(
        ("student", "size", "holds"), [(0.78, 40, True), (0.74, 40, False), (0.78, 50, False), (0.761, 40, None)]
    )
    def test_what_is_kept(self, student, size, holds):
        found = claim(made_figure3(student, size), "One student keeps")
        assert found.measured == pytest.approx(student / 0.8)
        assert (found.low, found.high) == pytest.approx(
            ((student - 0.01) / 0.8, (student + 0.00497) / 0.8), rel=1e-4
        )
        assert found.holds is holds

    @pytest.mark.parametrize(("student", "holds"), [(0.90, None), (0.759, None), (0.74, False)])
    def test_one_seed_can_refute_but_not_show(self, student, holds):
        results = made_figure3(student)
        results.row("ours").content["kept"] |= {"low": None, "high": None}
        found = claim(results, "One student keeps")
        assert found.holds is holds and "One seed" in found.why

    def test_a_specialist_that_is_missing(self):
        results = made_figure3()
        results.row("ours").content["kept"] = None
        assert claim(results, "One student keeps").measured is None
        assert claim(without(made_figure3(), "ours"), "One student keeps").measured is None

    @pytest.mark.parametrize(
        ("student", "p_value", "holds"), [(0.78, 0.02, True), (0.78, 0.07, False), (0.5, 0.02, False)]
    )
    def test_whether_teaching_helped(self, student, p_value, holds):
        results = made_figure3(student)
        results.row("ce").content["tasks_against_baseline"]["over_items"]["p_value"] = p_value
        found = claim(results, "Taught, a student scores higher")
        assert found.measured == pytest.approx(100 * (student - 0.6))
        assert found.low == pytest.approx(found.measured - 3) and found.high == pytest.approx(found.measured + 5)
        assert found.holds is holds

    def test_whether_teaching_helped_has_no_verdict_for_one_seed_or_row(self):
        results = made_figure3()
        results.row("ce").content["tasks_against_baseline"]["over_seeds"]["p_value"] = None
        assert claim(results, "Taught, a student scores higher").holds is None
        assert claim(without(results, "ce"), "Taught, a student scores higher").measured is None

    def test_without_tasks_it_is_shown_like_the_others(self, tmp_path):
        results = {"figure3": made_experiment("figure3", [made_row("ours", "Students", 20.0)])}
        draw_all(results, tmp_path)
        assert "| ours | 20.00" in render_page(results, "results")
        assert claim(results["figure3"], "One student keeps").holds is None

    def test_the_papers_accuracy_is_that_of_the_kind_of_task(self):
        found = claim(made_figure3(), "accuracy on sciq")
        assert (found.paper, found.holds) == ("85.2 %", None)
        assert found.measured == pytest.approx(78.0)

    def test_scores_on_the_page(self):
        text = render_page({"figure3": made_figure3()}, "results")
        assert "| random answers | 25.0 | 25.0 |" in text
        assert "| teacher knows_sst2 | 80.0 [79.0, 81.0] | 30.0 [29.0, 31.0] |" in text
        score = "78.0 [77.5, 78.5]"  # over seeds, wider than over items
        assert f"| ours | {score} | {score} | {score} | 97.5 [96.2, 98.1] | 3 |" in text
        apart = "-2.0 [-5.0, +1.0], p 0.030"
        assert f"| ours | {apart} | {apart} |" in text

    def test_a_task_without_a_specialist_on_the_page(self):
        results = made_figure3()
        results.row("ours").content["tasks"]["sciq"]["to_specialist"] = None
        results.row("ours").content["kept"] = None
        text = render_page({"figure3": results}, "results")
        assert "| ours | -2.0 [-5.0, +1.0], p 0.030 | – |" in text  # noqa: RUF001


class TestPage:
    def test_it_is_the_same_again(self):
        assert render_page(everything(), "results") == render_page(everything(), "results")

    def test_numbers_are_those_of_the_json(self):
        text = render_page(everything(), "results")
        row = made_table1().row("ours").content["figures"]["perplexity"]
        assert f"| ours | {row['mean']:.2f} [{row['low']:.2f}, {row['high']:.2f}] |" in text
        assert "| +0.100 [+0.020, +0.150] | 0.020 | 3 |" in text, "both intervals' envelope"
        assert "| -20.0 % [-20.0 %, -20.0 %] | holds |" in text
        assert "**does not hold**" in text
        assert "CC0" in text and "1,234" in text and "1h01m" in text and "torch 1.0" in text

    @pytest.mark.parametrize("missing", EXPERIMENTS)
    def test_an_experiment_that_is_missing_keeps_its_place(self, missing):
        results = {name: measured for name, measured in everything().items() if name != missing}
        text = render_page(results, "results")
        assert f"Not run yet: `collegium reproduce {missing}`." in text
        assert f"results/{missing}.svg" not in text
        assert text.count("\n## ") == 1 + len(EXPERIMENTS)

    def test_nothing_is_there(self):
        text = render_page({}, "results")
        assert text.count("Not run yet") == len(EXPERIMENTS)

    @pytest.mark.parametrize("unknown", [None, math.nan])
    def test_unknown_intervals_are_left_out(self, unknown):
        row = made_row("alone", "g", 30.0, seeds=1)
        row["figures"]["perplexity"] |= {"low": unknown, "high": unknown}
        row["figures"]["ece"] = {"mean": unknown, "low": unknown, "high": unknown, "values": [unknown]}
        row["against_baseline"]["over_seeds"] |= {"low": unknown, "high": unknown, "p_value": unknown}
        row["against_baseline"]["p_holm"] = unknown
        text = render_page({"figure2": made_experiment("figure2", [made_row("ours", "g", 20.0), row])}, "results")
        line = next(line for line in text.splitlines() if line.startswith("| alone | 30.00 |"))
        assert "+0.100 [+0.020, +0.120]" in line, "the interval over documents alone"
        assert "nan" not in text.lower() and "None" not in text

    def test_a_bar_in_a_label_is_no_column(self):
        row = made_row("ours", "g", 20.0, label="a|b")
        assert r"| a\|b |" in render_page({"table1": made_experiment("table1", [row])}, "results")


class TestOtherPages:
    def test_what_is_between_markers_is_rewritten(self):
        results = everything()
        text = refresh(MARKERS, results, "other.md")
        assert text == MARKERS.replace("old\n", f"\n{group_table(results['conditions'], 'overconfident')}\n\n")
        assert refresh(text, results, "other.md") == text

    def test_rows_to_compare_with_stand_first(self):
        labels = [row.label for row in group_rows(made_conditions(), "overconfident")]
        assert labels[:4] == [
            "uniform, none over-confident",
            "paper, none over-confident",
            "ours, none over-confident",
            "sharp uniform",
        ]
        assert "| uniform, none over-confident | 22.00" in group_table(made_conditions(), "overconfident")

    def test_without_results_it_is_left_alone(self):
        assert refresh(MARKERS, {}, "other.md") == MARKERS

    @pytest.mark.parametrize("wrong", ["conditions/nothing", "figure9/overconfident"])
    def test_a_wrong_marker_is_reported(self, wrong):
        text = MARKERS.replace("conditions/overconfident", wrong)
        with pytest.raises(DataError, match=r"other\.md: .*there are"):
            refresh(text, everything(), "other.md")

    @pytest.mark.parametrize("lost", ["<!-- end -->\n", "<!-- results: conditions/overconfident -->\n"])
    def test_a_marker_without_its_counterpart_is_reported(self, lost):
        with pytest.raises(DataError, match=r"other\.md: .*needs"):
            refresh(MARKERS.replace(lost, "", 1) + MARKERS, everything(), "other.md")

    def test_several_on_a_page(self):
        twice = MARKERS + MARKERS.replace("overconfident", "cache")
        assert [match[2] for match in MARKED.findall(refresh(twice, everything(), "x"))] == [
            "overconfident",
            "cache",
        ]


class TestFiles:
    def test_publish(self, tmp_path):
        write(everything(), tmp_path / "json")
        (tmp_path / "docs").mkdir()
        (tmp_path / "docs" / "when.md").write_text(MARKERS)
        publish(tmp_path / "json", tmp_path / "docs" / "results.md")
        page = (tmp_path / "docs" / "results.md").read_text()
        assert page == render_page(everything(), "results")
        assert "sharp uniform" in (tmp_path / "docs" / "when.md").read_text()
        for name in EXPERIMENTS:
            assert f"(results/{name}.svg)" in page
            figure = ElementTree.parse(tmp_path / "docs" / "results" / f"{name}.svg")
            assert f"results {fingerprint(everything()[name])}" in "".join(figure.getroot().itertext())

    def test_figures_are_the_same_again_and_carry_no_date(self, tmp_path):
        for folder in ("a", "b"):
            draw_all(everything(), tmp_path / folder)
        for name in EXPERIMENTS:
            first = (tmp_path / "a" / f"{name}.svg").read_bytes()
            assert first == (tmp_path / "b" / f"{name}.svg").read_bytes()
            assert b"dc:date" not in first

    def test_figures_of_what_is_there(self, tmp_path):
        few = made_experiment("conditions", [made_row("ours", "text", 20.0, seeds=1)])
        bare = made_experiment("figure2", [made_row("ours", "domains", 20.0)])
        draw_all({"conditions": few, "figure2": bare}, tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["conditions.svg", "figure2.svg"]

    def test_only_the_page(self, tmp_path):
        write({"table1": made_table1()}, tmp_path / "json")
        page = tmp_path / "docs" / "results.md"
        reproduce("page", scale="small", output=tmp_path, jobs=1, results=tmp_path / "json", page=page)
        assert page.read_text() == render_page({"table1": made_table1()}, "results")

    def test_an_experiment_leaves_its_json_in_both_folders(self, tmp_path, monkeypatch):
        content = dict(made_table1().content)
        monkeypatch.setattr("collegium.paper.command._results", lambda *_: content)
        page = tmp_path / "docs" / "results.md"
        found = reproduce("table1", scale="small", output=tmp_path, jobs=1, results=tmp_path / "json", page=page)
        assert found == content
        for folder in ("small", "json"):
            assert unsealed(json.loads((tmp_path / folder / "table1.json").read_text())) == content
        assert page.read_text() == render_page({"table1": made_table1()}, "results")

    def test_no_such_experiment(self, tmp_path):
        with pytest.raises(RecipeError, match="figure9.*table1"):
            reproduce("figure9", scale="small", output=tmp_path, jobs=1)

    def test_the_page_is_by_default_beside_its_results(self, tmp_path):
        write({"figure2": made_figure2()}, tmp_path / "small")
        reproduce("page", scale="small", output=tmp_path, jobs=None)
        assert "bad uniform" in (tmp_path / "small" / "results.md").read_text()


class TestExperimentsHaveWhatThePageNames:
    """Rows are found by their names, so a row renamed there must be renamed here."""

    @staticmethod
    def rows(name: str) -> dict[str, str]:
        specification = load_specification(ROOT / "experiments" / "small.yaml")
        experiment: Experiment = RUNNABLE[name](specification)
        return {row.name: row.group for row in experiment.rows(lambda names: names[0])}

    def test_table1(self):
        assert {*BEATEN, *PUBLISHED, "ours", "paper"} <= set(self.rows("table1"))

    def test_figure2(self):
        rows = self.rows("figure2")
        named = {
            "one",
            "ours_2",
            "uniform_2",
            "copies_1",
            "copies_5",
            "bad_uniform",
            "bad_paper",
            "bad_raw",
            "bad_ours",
        }
        assert named <= set(rows)
        assert set(rows.values()) == {"domains", "copies", "bad"}

    def test_conditions(self):
        rows = self.rows("conditions")
        assert {"ce", "ours", "ce_4000", "ours_4000"} <= set(rows)
        assert set(rows.values()) == {"text", "weighting", "overconfident", "switching", "cache"}

    def test_groups(self):
        known = {group for name in ("figure2", "conditions") for group in self.rows(name).values()}
        assert known <= set(GROUPS)
        for (experiment, group), names in REFERENCES.items():
            rows = self.rows(experiment)
            assert group in rows.values() and set(names) <= set(rows)
