"""Text of others in a card is shown and does nothing: checked by rendering it."""

import html
import re

import pytest
from markdown_it import MarkdownIt

from collegium.report.card.markup import code_block, escaped, table
from tests.support.hostile import HOSTILE_MARKDOWN


@pytest.mark.parametrize("text", HOSTILE_MARKDOWN)
def test_hostile_text_renders_as_it_is(text):
    parser = MarkdownIt("gfm-like", {"html": True, "linkify": False})
    shown = escaped(text)
    rendered = parser.render(f"Some {shown} here.\n\n{table(['a', 'b'], [[shown, 'last']])}\n\n{shown}\n")
    plain = " ".join(text.split())
    tags = set(re.findall(r"</?([a-z0-9]+)", rendered))
    assert tags <= {"p", "table", "thead", "tbody", "tr", "th", "td"}, rendered
    cells = [html.unescape(cell) for cell in re.findall(r"<td>(.*?)</td>", rendered, re.DOTALL)]
    assert cells == [plain, "last"]
    assert html.unescape(rendered).startswith(f"<p>Some {plain} here.</p>")
    assert "www." not in shown and "://" not in shown, "the hub makes links of these"


@pytest.mark.parametrize("name", ["SmolLM2-135M", "c4.utf8", "my_teacher_2", "someone 1.0", "100%"])
def test_plain_names_stay_readable(name):
    assert escaped(name) == name


def test_a_block_cannot_be_ended_by_its_text():
    text = "name: x\n```\n<script>\n````\nmore"
    block = code_block(text, "yaml")
    tokens = MarkdownIt().parse(f"{block}\n\nafter\n")
    assert [token.type for token in tokens][:2] == ["fence", "paragraph_open"]
    assert tokens[0].content == f"{text}\n"
