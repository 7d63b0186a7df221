"""The card says what is known, in the hub's format, and the same bytes every time."""

import json

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from collegium.report.card.licences import obstacles
from collegium.report.card.on_disk import front_matter, stated_licence
from collegium.report.card.public_recipe import public
from collegium.report.card.render import render_card
from collegium.report.evaluation_file import as_content, evaluation_of
from tests.support.hostile import HOSTILE_MARKDOWN
from tests.support.made_up_lineage import content, evaluation, figure, lineage, source, teacher


def head_of(made) -> dict:
    return yaml.safe_load(render_card(made, "name: x\n").split("---\n")[1])


def body_of(made) -> str:
    return ModelCard(render_card(made, "name: x\n")).text


def test_metadata_in_the_hubs_format():
    scores = {"f1": figure(0.4), "exact": figure(0.3)}
    task = {"task": "qa", "items": 20, "primary": "f1", "figures": scores, "baselines": {}, "teachers": {}}
    whole = evaluation_of(content() | {"tasks": {"qa": task}})
    data = ModelCard(render_card(whole, "name: x\n")).data
    assert data.license == "apache-2.0" and data.license_name is None
    assert data.base_model == ["someone/small", "someone/one", "someone/two"]
    assert data["base_model_relation"] == "finetune"
    assert data.datasets == ["allenai/c4"] and data.language == ["en"]
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-generation")
    assert data.tags == ["collegium", "knowledge-distillation"]
    found = {(r.dataset_type, r.metric_type): r.metric_value for r in data.eval_results}
    assert found == {
        ("allenai/c4", "perplexity"): 12.3457,
        ("allenai/c4", "bits_per_byte"): 1.25,
        ("qa", "f1"): 0.4,
    }
    assert data.model_name == "made-up"


def test_only_what_is_on_the_hub_is_named_there():
    local = {"origin": "local", "model": "mine"}
    made = evaluation(
        teachers=[teacher("one", **local)],
        data=[source("web", origin="local", dataset=None, path="web.txt", language=None)],
    )
    made.lineage["student"] |= local
    head = head_of(made)
    assert not {"base_model", "base_model_relation", "datasets", "language"} & set(head)
    assert head["model-index"][0]["results"][0]["dataset"]["type"] == "web"


def test_a_student_of_random_weights_is_no_finetune():
    made = evaluation()
    made.lineage["student"]["kind"] = "config"
    head = head_of(made)
    assert head["base_model"] == ["someone/one", "someone/two"] and "base_model_relation" not in head


def test_licences_that_differ_are_other_and_listed():
    made = evaluation(teachers=[teacher("one"), teacher("two", licence="Gemma Terms of Use")])
    head = head_of(made)
    assert (head["license"], head["license_name"]) == ("other", "see-model-card")
    body = body_of(made)
    assert "under several licences (apache-2.0, gemma)" in body
    assert "**Gemma Terms of Use** (teacher two): under the Gemma Terms of Use a student distilled" in body
    assert "Read this before you pass the student on" in body
    assert "Read this before" not in body_of(evaluation())


def test_each_licence_is_named_once_with_all_that_is_under_it():
    made = evaluation(teachers=[teacher(name, licence="gemma") for name in ("one", "two", "three")])
    before = lineage(name="first", teachers=[teacher("one", licence="gemma")])
    made.lineage["student"] |= {"kind": "continued", "origin": "local", "model": "first", "earlier": before}
    body = body_of(made)
    assert body.count("under the Gemma Terms of Use a student distilled") == 1
    assert "| gemma | teacher one, teacher two, teacher three |" in body
    assert "| odc-by | text web |" in body
    assert len(obstacles(made.lineage)) == 3


def test_what_is_not_stated_is_said(tmp_path):
    made = evaluation(teachers=[teacher("one", licence=None, parameters=None, weight=None)])
    made.lineage["student"]["licence"] = None
    assert "license" not in head_of(made)
    body = body_of(made)
    plain = body.replace("\\", "")
    assert "| not stated | teacher one, student's first weights someone/small |" in plain
    assert "| one | not logged | not logged |" in body
    assert "its licence is not stated, so nothing says that a student may be passed on" in body
    (tmp_path / "README.md").write_text(render_card(made, "name: x\n"), encoding="utf-8")
    assert stated_licence(tmp_path / "README.md") is None
    assert front_matter(tmp_path / "README.md")["library_name"] == "transformers"


def test_the_text_says_how_it_was_made():
    body = body_of(evaluation())
    assert "a causal language model of 500,000 parameters" in body
    assert "0.9 x the KL divergence" in body and "plus 0.1 x the cross-entropy of the text" in body
    assert "exp(-entropy / tau) with tau 0.25 nats" in body and "| one | 0.500 | 0.250 |" in body
    assert "| perplexity | 12.35 (11.85 to 12.85) |" in body
    assert "someone/one at 0123456789ab" in body.replace("\\", "")
    sections = [line for line in body.splitlines() if line.startswith("## ")]
    assert [line[3:].split()[0] for line in sections] == [
        *("Lineage", "Licences", "Training", "Evaluation", "Intended", "How", "Recipe")
    ]


def test_a_run_without_teachers_has_none_invented():
    made = evaluation(teachers=[])
    made.lineage["training"]["kd_weight"] = 0.0
    body = body_of(made)
    assert "learnt from text alone (web), without teachers" in body
    assert "The loss is 1 x the cross-entropy of the text." in body and "mean weight" not in body


def test_what_an_earlier_run_was_made_of_is_told():
    made = evaluation()
    before = lineage(name="first", teachers=[teacher("old", licence="gemma")])
    made.lineage["student"] |= {"kind": "continued", "origin": "local", "model": "first", "earlier": before}
    body = body_of(made)
    assert "The earlier run first that it continues was made from:" in body and "teacher old" in body
    assert "someone/old" in head_of(made)["base_model"]


def test_the_same_input_makes_the_same_bytes():
    made = evaluation()
    again = evaluation_of(json.loads(json.dumps(as_content(made))))
    assert render_card(made, "name: x\n") == render_card(again, "name: x\n")


@pytest.mark.parametrize("text", HOSTILE_MARKDOWN)
def test_hostile_words_change_nothing_but_themselves(text):
    def card(word: str) -> tuple[str, str]:
        about = {"model": word, "origin": "local", "licence": word}
        made = evaluation(
            teachers=[teacher("one", adapter=teacher("a", **about), **about)],
            data=[source("web", dataset=None, path=word, config=word, licence=word, origin="local")],
        )
        made.lineage["student"] |= about
        return render_card(made, f"name: {word}\n"), word

    hostile, _ = card(text)
    plain, _ = card("word")
    parser = MarkdownIt("gfm-like", {"html": True, "linkify": False})

    def shape(whole: str) -> list[str]:
        return [token.type for token in parser.parse(ModelCard(whole).text)]

    assert shape(hostile) == shape(plain)
    rendered = parser.render(ModelCard(hostile).text)
    assert "<script" not in rendered and "<img" not in rendered and "<a " not in rendered
    assert set(yaml.safe_load(hostile.split("\n---\n")[0])) == set(yaml.safe_load(plain.split("\n---\n")[0]))


def test_a_public_recipe_has_no_paths_and_no_secrets():
    given = {
        "name": "x",
        "output_dir": "/home/someone/runs/x",
        "teachers": [
            {"name": "a", "model": "~/models/a", "adapter": "../adapters/a"},
            {"name": "b", "path": "s3://key:secret@bucket/caches/b?sig=1"},
            {"name": "c", "model": "HuggingFaceTB/SmolLM2-135M"},
        ],
        "data": {"sources": [{"path": "package:p/x/*.txt", "separator": "/// END"}]},
    }
    shown = public(given)
    assert shown["output_dir"] == "x"
    assert [t.get("model") or t.get("path") for t in shown["teachers"]] == [
        *("a", "s3://bucket/caches/b", "HuggingFaceTB/SmolLM2-135M")
    ]
    assert shown["teachers"][0]["adapter"] == "a"
    assert shown["data"] == given["data"]
