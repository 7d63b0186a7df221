"""The page of a run that was made up: what stands on it, what it refuses, and that nothing on it acts."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collegium.base.errors import DataError, RecipeError
from collegium.base.visible import visible, visible_token
from collegium.pipeline.report import report
from collegium.report.curves import curves_of
from collegium.report.evaluation_file import evaluation_of
from collegium.report.page import render
from collegium.report.records import read_run
from collegium.report.words import verdict
from tests.support.hostile import HOSTILE, cycling
from tests.support.made_up_run import evaluation, write_run


class Parsed(HTMLParser):
    """Tags, their attributes and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def page_of(folder) -> str:
    return render([read_run(folder)], version="1")


ALLOWED = """
html head meta title link style body header h1 nav ul li a main article section p dl dt dd div h2 h3 h4 figure
figcaption svg g path defs clippath rect use text line tspan circle pattern table caption thead tbody tr th td
small span b code pre details summary footer
"""


def test_records_and_words_come_without_torch():
    code = (
        "import sys, collegium.report.records, collegium.report.words, collegium.report.page; "
        "assert not {'torch', 'transformers', 'numpy', 'matplotlib'} & set(sys.modules), 'heavy'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_everything_has_its_place(tmp_path):
    page = page_of(write_run(tmp_path / "run"))
    parsed = Parsed(page)
    for text in ("Verdict", "Who taught which token", "What they write", "org/one", "apache-2.0"):
        assert text in parsed.text
    assert page.count("<figure>") == 8 == page.count('<svg role="img"')
    tokens = [attrs for tag, attrs in parsed.tags if "tok" in (attrs.get("class") or "").split()]
    assert len(tokens) == 8 and all(attrs["tabindex"] == "0" for attrs in tokens)
    assert tokens[0]["class"] == "tok t0 s3 right" and tokens[1]["class"] == "tok t1 s3 c1"
    assert tokens[3]["class"] == "tok"  # nobody spoke there
    for text in ("mood: accuracy *", "50 items", "0.750", "0.520", "0.800", "with adapter adapter", "not stated"):
        assert text in parsed.text
    assert "9 min" not in parsed.text and "1m45s (+5%)" in parsed.text and "1.1 GB (+10%)" in parsed.text


def test_ids_are_unique_and_point_somewhere(tmp_path):
    runs = [read_run(write_run(tmp_path / name)) for name in ("first", "second")]
    tags = Parsed(render(runs, version="1")).tags
    ids = [attrs["id"] for _, attrs in tags if attrs.get("id")]
    assert len(ids) == len(set(ids))
    for _, attrs in tags:
        for key in ("href", "xlink:href"):
            if (attrs.get(key) or "").startswith("#"):
                assert attrs[key][1:] in ids
        if "aria-describedby" in attrs:
            assert attrs["aria-describedby"] in ids


def test_a_page_needs_nobody_and_allows_nothing(tmp_path):
    page = page_of(write_run(tmp_path / "run"))
    policy = next(
        attrs for tag, attrs in Parsed(page).tags if attrs.get("http-equiv") == "Content-Security-Policy"
    )
    assert "default-src 'none'" in policy["content"] and "script" not in policy["content"]
    assert not re.search(r"(src|href)=\"(?!#|data:,)", page.replace("xlink:href", "").replace("xmlns", ""))
    assert "<script" not in page and "@import" not in page and "var(--t0)" in page and "#0101" not in page


@pytest.mark.parametrize("start", range(0, len(HOSTILE), 6))
def test_hostile_text_is_shown_and_does_nothing(tmp_path, start):
    page = page_of(write_run(tmp_path / "run", cycling(start)))
    parsed = Parsed(page)
    assert {tag for tag, _ in parsed.tags} <= set(ALLOWED.split())
    assert not [attrs for _, attrs in parsed.tags if any(name.startswith("on") for name in attrs)]
    hrefs = [attrs["href"] for tag, attrs in parsed.tags if tag == "a"]
    assert all(href.startswith("#") for href in hrefs)
    assert "49" not in re.findall(r"<h3>(\d+)</h3>", page)  # no template in a text was run
    assert not re.search(
        "[\x00-\x08\x0b\x0c\x0e-\x1f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]", page
    )


def test_what_cannot_be_seen_is_told():
    assert visible("a\u202eb\x00") == "a\u27e8U+202E\u27e9b\u27e8U+0000\u27e9"
    assert visible_token("\n\t") == "\u23ce\u21e5" and visible_token("") == "\u2205"


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.characters(codec=None, exclude_categories=()), max_size=40))
def test_nothing_hidden_is_left(text):
    shown = visible(text)
    assert visible(shown) == shown
    shown.encode("utf-8")
    assert len(shown) >= len(text)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=1, max_size=500), st.integers(1, 60))
def test_thinned_curves_keep_the_mean_and_the_last_step(values, max_points):
    records = [{"step": i + 1, "train/loss": value, "epoch": 1.0} for i, value in enumerate(values)]
    curve = curves_of(records, max_points=max_points)
    assert set(curve) == {"train/loss"}
    steps, found = curve["train/loss"].step, curve["train/loss"].value
    assert len(steps) == len(found) <= max_points and steps[-1] == len(values)
    assert list(steps) == sorted(set(steps))
    sizes = [after - before for before, after in zip([0, *steps], steps, strict=False)]
    total = sum(size * value for size, value in zip(sizes, found, strict=True))
    assert total == pytest.approx(sum(values), abs=1e-3 * max(1, len(values)))


def test_the_verdict_says_what_the_figures_say():
    lines = verdict(evaluation_of(evaluation()))
    assert "from 148.4 to 20.1" in lines[0] and "-1.000 nats" in lines[0] and "-63% in perplexity" in lines[0]
    assert "best single teacher, one (perplexity 13.5)" in lines[1]
    assert "better than the best of them alone (2.500 and 2.600 nats)" in lines[2] and "1.7 of 2" in lines[2]
    assert "one by 0.80 and two by 0.80" in lines[3]


def test_a_difference_that_may_be_chance_is_called_so():
    content = evaluation()
    content["differences"]["before"]["all"] = {"value": 0.01, "low": -0.2, "high": 0.2, "p_value": 0.9}
    line = verdict(evaluation_of(content))[0]
    assert "raised" in line and "which may be chance" in line
    content["differences"]["before"]["all"] = {"value": 0.01, "low": None, "high": None, "p_value": None}
    line = verdict(evaluation_of(content))[0]
    assert "interval not known" in line and "chance" not in line


def test_sections_that_are_not_there_are_left_out(tmp_path):
    needed = ("schema_version", "recipe", "model", "held_out", "confidence", "domains", "mean")
    least = {key: evaluation()[key] for key in needed}
    run = write_run(tmp_path / "run")
    (run / "evaluation.json").write_text(json.dumps(least))
    parsed = Parsed(page_of(run))
    assert "Who taught which token" not in parsed.text and "20.0" in parsed.text


def test_teachers_that_only_measured_a_student_are_shown_too(tmp_path):
    run = write_run(tmp_path / "run")
    recipe = run / "recipe.yaml"
    lines = [line for line in recipe.read_text().splitlines() if "org/two" not in line]
    recipe.write_text("\n".join(lines))
    tokens = [attrs for _, attrs in Parsed(page_of(run)).tags if "tok" in (attrs.get("class") or "").split()]
    assert {"t0", "t1"} <= {name for attrs in tokens for name in attrs["class"].split()}


def test_runs_are_compared_document_by_document(tmp_path):
    better = evaluation()["documents"]
    for name in better:
        better[name] = {"tokens": [200, 300, 100], "nll": [590.0, 885.0, 297.0]}
    other = {name: {"tokens": [1, 2], "nll": [3.0, 4.0]} for name in better}
    folders = [write_run(tmp_path / "first"), write_run(tmp_path / "second", documents=better)]
    folders.append(write_run(tmp_path / "third", documents=other))
    made = report(folders, tmp_path / "all.html")
    rows = made["comparison"]["table"]["rows"]
    assert rows[1][-2]["text"] == "-0.047"  # (590 + 885 + 297 - 1800) / 600
    assert rows[2][-2]["text"] == "not comparable" and rows[0][-2]["text"] == "-"
    assert rows[1][-1]["text"] == "too few documents to tell: 3, 10 are needed"
    shown = Parsed((tmp_path / "all.html").read_text()).text
    assert "Runs beside each other" in shown and "3 documents of 600 tokens" in shown
    assert "are left out: other held-out text." in shown


def rewritten(run, before, after):
    path = run / "recipe.yaml"
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    return run


@pytest.mark.parametrize(
    ("before", "after", "reason", "keeps_losses"),
    [
        ("model: org/two", "model: org/three", "other teachers (model)", True),
        ("name: two, ", "name: three, ", "other teachers", True),
        ("model: org/two}", "model: org/two, target_temperature: 2.0}", "teachers at other temperatures", True),
        ("model: org/two}", "model: org/two, weight_temperature: 2.0}", None, True),
        ("max_steps: 10", "max_steps: 20", None, True),
    ],
)
def test_a_kl_to_another_target_is_left_out_with_its_reason(tmp_path, before, after, reason, keeps_losses):
    first, second = write_run(tmp_path / "first"), rewritten(write_run(tmp_path / "second"), before, after)
    made = report([first, second], tmp_path / "all.html")["comparison"]
    row = made["table"]["rows"][1]
    remarks = "\n".join(made["remarks"])
    assert (row[-3]["text"] == "-") == (reason is not None)
    assert reason is None or f"the KL to the common target is left out: {reason}" in remarks
    assert row[-4]["text"] != "-" and row[-2]["text"] != "not comparable"
    changed = after.split(": ")[-1].rstrip("}").removesuffix(", ")
    assert "Recipe of" in remarks and changed in remarks, "what differs is said"


@pytest.mark.parametrize(
    ("context", "recipe", "reason"),
    [
        (64, ("max_steps: 10", "max_steps: 10"), "contexts of 64 tokens, not of 32"),
        (32, ("org/base", "org/other"), "another tokenizer: that of org/other, not of org/base"),
    ],
)
def test_losses_of_other_tokens_are_left_out_with_the_reason(tmp_path, context, recipe, reason):
    documents = {name: {"tokens": [7, 8], "nll": [3.0, 4.0]} for name in evaluation()["documents"]}
    held_out = {**evaluation()["held_out"], "context_length": context}
    second = write_run(tmp_path / "second", documents=documents, held_out=held_out)
    made = report([write_run(tmp_path / "first"), rewritten(second, *recipe)], tmp_path / "all.html")["comparison"]
    cells = [cell["text"] for cell in made["table"]["rows"][1]]
    assert cells[1:] == ["-", "-", "-", "-", "not comparable", "-"]
    assert f"perplexities and the difference in nats are left out: {reason}" in made["remarks"][0]


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"holds no evaluation\.json; give the folder of a finished run"):
        report([tmp_path])
    run = write_run(tmp_path / "run")
    with pytest.raises(RecipeError, match="given twice"):
        report([run, tmp_path / "." / "run"])
    (run / "evaluation.json").write_text('{"domains": {')
    with pytest.raises(DataError, match="is damaged"):
        report([run])
    assert not (run / "report.html").exists()


def test_the_page_is_named_and_small(tmp_path):
    run = write_run(tmp_path / "run")
    made = report([run])
    assert (
        made["page"] == str(run / "report.html")
        and made["bytes"] == (run / "report.html").stat().st_size < 300_000
    )
    assert made["runs"]["made-up"]["verdict"] == verdict(evaluation_of(evaluation()))
