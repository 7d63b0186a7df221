"""The results page: every number on it comes from the experiments' JSON, and the same JSON gives the same text.

Other pages can hold tables of single groups between markers, which are rewritten together with the page:
`<!-- results: conditions/overconfident -->` up to `<!-- end -->`. No torch here.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from collegium.base.durable import write_text
from collegium.base.errors import DataError
from collegium.base.terminal import duration
from collegium.paper.claims import RED_FLAGS, claims_of
from collegium.paper.markdown import (
    LEARNT,
    QUALITY,
    WRITTEN,
    claims_table,
    experiment_table,
    group_table,
    table,
    targets_table,
)
from collegium.paper.measured import EXPERIMENTS, Measured, read_results
from collegium.paper.task_tables import task_tables


TITLES = {
    "table1": "Table 1: methods",
    "figure2": "Figure 2: number of teachers",
    "figure3": "Figure 3: five tasks",
    "conditions": "When it helps",
}

FIGURES = {
    "table1": "Perplexity of each way to train the student, with intervals over seeds",
    "figure2": "Perplexity and KL to the common target over the number of teachers, and with a bad teacher",
    "figure3": "Scores on five tasks of specialists, baselines and one student",
    "conditions": "Perplexity over the amount of text, with an over-confident teacher, with documents that change"
    " their domain, and with several caches",
}
"""Descriptions of the figures for readers who cannot see them."""

HEAD = """<!-- Written by `collegium reproduce`, which overwrites changes. -->

# Results: what the paper claims, and what was measured

Perplexities are exp of the mean loss over domains, on test documents that took no part in any choice: learning
rates and the best single teacher are chosen on other held-out documents. Rows with the same seed start from the
same weights and read the same blocks in the same order, unless their name says that there are more or fewer;
each row had the same number of trials for its learning rate, or took that of the row that it is a variant of.

Numbers in brackets are 95 % intervals over seeds. "nats above ours" is a row's loss minus that of our rule,
with an interval that covers both the one over seeds and the one over documents (with one seed, the latter
alone); p is the larger of both tests' after Holm's correction over the table. Rows with fewer seeds are there
to explain, not to claim. Of the KLs, only the one to the common target ranks students. `docs/evaluation.md`
says what each figure is.
"""

NOT_TO_COMPARE = """## Why the paper's numbers cannot be compared as they stand

The paper (arXiv:2507.15198) names neither its teachers nor its student, and no code exists. So its claims are
compared as ratios, and these stand in the way of more:

"""

MARKED = re.compile(r"(<!-- results: (\w+)/([\w ,-]+?) -->\n)((?:(?!<!-- ).)*)(<!-- end -->)", re.DOTALL)
MARK = re.compile(r"^<!-- (results: |end -->)", re.MULTILINE)


def publish(folder: Path, page: Path) -> None:
    """Write the page, its figures beside it, and the tables between markers on other pages in its folder.

    Args:
        folder: Folder of the experiments' JSON.
        page: The file to write, such as `docs/results.md`; figures go to `docs/results`.

    Raises:
        DataError: another page asks for a table that no experiment has.
    """
    from collegium.paper.plots import draw_all

    results = read_results(folder)
    draw_all(results, page.with_suffix(""))
    write_text(page, render_page(results, page.stem))
    for other in sorted(page.parent.glob("*.md")):
        text = other.read_text(encoding="utf-8")
        if other != page and (refreshed := refresh(text, results, other.name)) != text:
            write_text(other, refreshed)


def render_page(results: Mapping[str, Measured], figures: str) -> str:
    """Render the whole page.

    Args:
        results: Experiments that were run, by name.
        figures: Folder of the figures beside the page.
    """
    flags = "\n".join(f"- {flag}" for flag in RED_FLAGS)
    sections = [_section(name, results.get(name), figures) for name in EXPERIMENTS]
    return "\n".join([HEAD, NOT_TO_COMPARE + flags + "\n", *sections])


def refresh(text: str, results: Mapping[str, Measured], name: str) -> str:
    """Rewrite what stands between the markers of a page; left alone where the experiment was not run.

    Raises:
        DataError: the experiment has no such group, or a marker has no counterpart.
    """
    if len(MARK.findall(text)) != 2 * len(MARKED.findall(text)):
        raise DataError(
            f"{name}: each <!-- results: EXPERIMENT/GROUP --> needs an <!-- end -->, in lines of their own"
        )

    def replaced(match: re.Match[str]) -> str:
        start, experiment, group, old, end = match.groups()
        if experiment not in EXPERIMENTS:
            raise DataError(f"{name}: no experiment {experiment!r}; there are {', '.join(EXPERIMENTS)}")
        if experiment not in results:
            return f"{start}{old}{end}"
        if group not in (groups := results[experiment].groups):
            raise DataError(f"{name}: {experiment} has no group {group!r}; there are {', '.join(groups)}")
        return f"{start}\n{group_table(results[experiment], group)}\n\n{end}"

    return MARKED.sub(replaced, text)


def _section(name: str, results: Measured | None, figures: str) -> str:
    title = f"## {TITLES[name]}\n"
    if results is None:
        return f"{title}\nNot run yet: `collegium reproduce {name}`.\n"
    parts = [title, f"{_about(results)}\n", f"![{FIGURES[name]}]({figures}/{name}.svg)\n"]
    if claims := claims_of(results):
        parts += ["### Claims\n", claims_table(claims) + "\n"]
    parts += task_tables(results) if results.tasks else _tables(results)
    if results.domains:
        parts += ["### Text\n", _text(results) + "\n"]
    return "\n".join(parts)


def _about(results: Measured) -> str:
    """Say in one paragraph what was done."""
    seeds = sorted({len(row.seeds) for row in results.rows})
    count = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    content = results.content
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    read = content.get("student_tokens")
    text = f" The student's text has {read:,} tokens unless a row says otherwise." if read else ""
    return (
        f"{content['about']}{text} Scale `{content['scale']}`, {len(results.rows)} rows of {count} seeds,"
        f" {duration(content['seconds'])} of work in all processes together, with {versions}."
        f" Specification `{content['specification']}`."
    )


def _tables(results: Measured) -> list[str]:
    parts = ["### Students\n", experiment_table(results, QUALITY) + "\n"]
    parts += ["What they learnt of their teachers:\n", experiment_table(results, LEARNT) + "\n"]
    if any(row.has("bleu_reference") for row in results.rows):
        parts += ["What they write, against the text and against the teachers' own continuations:\n"]
        parts += [experiment_table(results, WRITTEN) + "\n"]
    teachers = results.content.get("teachers", {})
    if alone := teachers.get("alone"):
        parts += ["### Teachers and fused targets themselves\n"]
        parts += ["A teacher alone on test documents of each domain:\n"]
        parts += [targets_table(alone, results.domains, "teacher") + "\n"]
    if fused := teachers.get("fused"):
        parts += ["What a student that learnt its target perfectly would come to, teachers not calibrated"]
        parts[-1] += " (`oracle` knows the domain of each text):\n"
        parts += [targets_table(fused, results.domains, "weights") + "\n"]
    return parts


def _text(results: Measured) -> str:
    lines = [
        [
            domain,
            " ".join(f"`{value}`" for value in text["source"].values()) or "made by the experiment",
            text["licence"] or "not stated",
            f"{text['validation_documents']:,}",
            f"{text['test_documents']:,}",
            f"{text['test_tokens']:,}",
        ]
        for domain, text in results.content["text"].items()
    ]
    titles = ["domain", "source", "licence", "validation documents", "test documents", "test tokens"]
    return table(titles, lines)
