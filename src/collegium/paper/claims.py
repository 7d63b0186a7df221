"""The paper's claims beside what was measured, in relative terms.

The paper is arXiv:2507.15198; its models, budgets and seeds are not known, so only ratios can be compared, and
some of its figures not at all. A claim of a size holds if the whole interval over seeds is at least as large, and
does not if the mean falls short of it; in between, and with one seed, there is no verdict. But one seed's interval
over items can refute that enough of the specialists is kept. No torch here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from collegium.paper.measured import Comparison, Measured, MeasuredRow
from collegium.paper.spread import Spread
from collegium.report.metric_names import KL_COMMON, PERPLEXITY


SIGNIFICANT = 0.05

RED_FLAGS = (
    "Its 5-teacher point of figure 2 is its own row of table 1, and its 1-teacher point (perplexity 25.4) is worse"
    " than the worst baseline (24.7). So the table compares five teachers with one: number of teachers and method"
    " cannot be told apart.",
    "TinyBERT and MobileBERT are encoders. A perplexity on C4 needs a head that predicts the next token, and none"
    " is described.",
    'Its "distillation loss" is measured against each method\'s own target. A smoother target is easier to match,'
    " so such values rank nothing.",
    "A BLEU of 86.7 at a perplexity near 21 cannot be that of free continuations against the text of C4; what was"
    " compared with what is not said.",
    'Figure 3 gives an "accuracy" of summarization, which is not defined.',
    "There are no seeds, no intervals, no amount of compute, and neither teachers nor student are named.",
)
"""Reasons why the paper's numbers cannot be compared as they stand."""

BEATEN = {
    "ce": "cross-entropy only",
    "best_single": "the best single teacher (chosen on validation text)",
    "uniform": "uniform fusion",
    "tinybert": "TinyBERT",
    "mobilebert": "MobileBERT",
    "minilm": "MiniLM",
    "dkd": "DKD",
}
"""Rows of table 1 that our rule should beat."""

PUBLISHED = ("tinybert", "mobilebert", "minilm", "dkd")

WORST_BASELINE = 20.8 / 24.7 - 1.0
MORE_TEACHERS = {PERPLEXITY: 20.8 / 25.4 - 1.0, KL_COMMON: 1.64 / 2.42 - 1.0}
"""Changes that the paper reports: its method from the worst baseline, five teachers from one."""

ACCURACIES = {"summarization": 88.7, "paraphrase": 87.3, "ner": 86.1, "qa": 85.2, "sentiment": 83.5}
"""Of the paper's figure 3, percent."""

KEPT = 0.95
"""Share of the specialists' mean score that a student should keep."""

SIZE = 0.5
"""Share of a specialist's size that it stays below."""


Kind = Literal["change", "share", "score"]
"""A change as a share of a reference, a share, or a score from 0 to 100."""


@dataclass(frozen=True)
class Verdict:
    """The verdict on a claim.

    Attributes:
        holds: Whether it holds; None if that cannot be said.
        why: The reason.
    """

    holds: bool | None
    why: str


ONE_SEED = Verdict(None, "One seed: no interval.")


@dataclass(frozen=True)
class Claim:
    """One claim.

    Attributes:
        text: What is claimed.
        paper: What the paper reports, or that it reports nothing.
        measured: The figure measured; None if there is none.
        low: Lower end of its 95 % interval over seeds; None if not known.
        high: Upper end; None likewise.
        holds: See `Verdict`.
        why: See `Verdict`.
        kind: What the figure is.
    """

    text: str
    paper: str
    measured: float | None
    low: float | None
    high: float | None
    holds: bool | None
    why: str
    kind: Kind = "change"


def claims_of(results: Measured) -> list[Claim]:
    """Claims that an experiment bears on, computed from its JSON alone."""
    kinds: Mapping[str, Callable[[Measured], list[Claim]]] = {
        "table1": table1_claims,
        "figure2": figure2_claims,
        "figure3": figure3_claims,
    }
    claims = kinds.get(results.experiment)
    return [] if claims is None else claims(results)


def table1_claims(results: Measured) -> list[Claim]:
    """Our rule against each baseline, then what the paper puts in figures."""
    return [
        *(_beats(results, name, label) for name, label in BEATEN.items()),
        _worst_baseline(results),
        _papers_weights(results),
        *(_own_target(results, name, paper) for name, paper in (("minilm", 2.18), ("dkd", 1.97))),
        _bleu(results),
    ]


def _claim(text: str, paper: str, spread: Spread | None, verdict: Verdict, kind: Kind = "change") -> Claim:
    if spread is None:
        return Claim(text, paper, None, None, None, None, "Not measured.", kind)
    return Claim(text, paper, spread.mean, spread.low, spread.high, verdict.holds, verdict.why, kind)


def _beats(results: Measured, name: str, label: str) -> Claim:
    row = results.row(name)
    change = results.change(PERPLEXITY, "ours", name)
    verdict = _beaten(None if row is None else row.against_baseline)
    return _claim(f"Our rule has a lower perplexity than {label}", "no test", change, verdict)


def _beaten(difference: Comparison | None) -> Verdict:
    if difference is None or difference.p_holm is None:
        return Verdict(None, "Not tested: one seed, or other text.")
    above = difference.over_seeds.value
    holds = difference.p_holm < SIGNIFICANT and above > 0.0
    side = "above" if above > 0.0 else "below"
    why = f"Its loss is {abs(above):.3f} nats {side} ours, p = {difference.p_holm:.2g} after Holm."
    if above > 0.0 and not holds:
        why += " That may be chance."
    return Verdict(holds, why)


def _at_least(spread: Spread | None, wanted: float) -> Verdict:
    """Decide whether a decrease is as large as claimed."""
    if spread is None or spread.low is None or spread.high is None:
        return ONE_SEED
    if spread.mean > wanted:
        return Verdict(False, f"The mean falls short of {_percent(wanted)}.")
    if spread.high > wanted:
        return Verdict(None, f"The mean reaches {_percent(wanted)}, the interval does not.")
    return Verdict(True, "The whole interval is at least as large.")


def _worst_baseline(results: Measured) -> Claim:
    known = {row.name: s.mean for row in results.named(PUBLISHED) if (s := row.spread(PERPLEXITY))}
    worst = max(known, key=known.__getitem__) if known else ""
    spread = results.change(PERPLEXITY, "ours", worst)
    verdict = _at_least(spread, WORST_BASELINE)
    text = f"Perplexity relative to the worst of {len(PUBLISHED)} published baselines"
    text += f" (here {BEATEN[worst]})" if worst else ""
    if len(known) < len(PUBLISHED):
        verdict = Verdict(None, f"Only {len(known)} of {len(PUBLISHED)} baselines were measured.")
    return _claim(text, f"24.7 to 20.8: {_percent(WORST_BASELINE)}", spread, verdict)


def _papers_weights(results: Measured) -> Claim:
    text = "The paper's weights as written (each token, tau 1, not calibrated) beat uniform ones in perplexity"
    spread = results.change(PERPLEXITY, "paper", "uniform")
    verdict = ONE_SEED
    if spread is not None and spread.low is not None and spread.high is not None:
        why = "Decided by the interval over seeds, a test by itself; uniform fusion is not in the paper."
        verdict = Verdict(spread.high < 0.0, why)
    return _claim(text, "claimed in words", spread, verdict)


def _own_target(results: Measured, name: str, loss: float) -> Claim:
    why = (
        "The paper's loss is against each method's own target and cannot be compared. Shown is the KL to one"
        " common target, the experts' uniform mixture."
    )
    text = f"Distillation loss lower than {BEATEN[name]}'s"
    paper = f"{loss:g} to 1.64: {_percent(1.64 / loss - 1.0)}"
    return _claim(text, paper, results.change(KL_COMMON, "ours", name), Verdict(None, why))


def _bleu(results: Measured) -> Claim:
    row = results.row("ours")
    spread = None if row is None else row.spread("bleu_reference")
    why = "Cannot be compared: what the paper scored against what is not said. Shown is that of continuations."
    return _claim("BLEU of our rule", "86.7 (79.1 with one teacher)", spread, Verdict(None, why), "score")


def figure2_claims(results: Measured) -> list[Claim]:
    """The effect of more teachers, and of a bad one."""
    count = len(results.numbered("copies"))
    designs = {"each of a domain of its own": ("ours", "one")}
    if count > 1:
        designs["copies that differ by their seed"] = (f"copies_{count}", "copies_1")
    claims = [
        _more(results, figure, noun, design, *names)
        for design, names in designs.items()
        for figure, noun in ((PERPLEXITY, "Perplexity"), (KL_COMMON, "KL to the common target"))
    ]
    bad = {"bad_uniform": "uniform", "bad_paper": "paper", "bad_raw": "ours", "bad_ours": "ours"}
    return [*claims, *(_bad(results, *names) for names in bad.items() if results.row(names[0]) is not None)]


def _more(results: Measured, figure: str, noun: str, design: str, name: str, reference: str) -> Claim:
    spread = results.change(figure, name, reference)
    wanted = MORE_TEACHERS[figure]
    reported = {PERPLEXITY: "25.4 to 20.8", KL_COMMON: "2.42 to 1.64, not said against what"}[figure]
    text = f"{noun} of all teachers against one, {design}"
    return _claim(text, f"{reported}: {_percent(wanted)}", spread, _at_least(spread, wanted))


def _bad(results: Measured, name: str, reference: str) -> Claim:
    row = results.row(name)
    without = results.row(reference)
    assert row is not None
    label = row.label if without is None else f"{row.label} (against {without.label})"
    text = f"What a bad teacher costs in perplexity: {label}"
    spread = results.change(PERPLEXITY, name, reference)
    return _claim(text, "not examined", spread, Verdict(None, "Nothing was claimed."))


def figure3_claims(results: Measured) -> list[Claim]:
    """Each task, what is kept of the specialists, and whether their teaching helped."""
    student = results.baseline
    tasks = results.tasks
    order = list(ACCURACIES)
    verdict = Verdict(None, "Other data, models and measures: cannot be compared.")
    claims = []
    for name in sorted(tasks, key=lambda name: order.index(tasks[name].kind)):
        score = None if student is None else student.score(name).spread
        claims.append(
            _claim(
                f"{tasks[name].primary} on {name}",
                f"{ACCURACIES[tasks[name].kind]} %",
                None if score is None else score.times(100.0),
                verdict,
                "score",
            )
        )
    return [*claims, _kept(results, student), _taught(results)]


def _kept(results: Measured, student: MeasuredRow | None) -> Claim:
    text = "One student keeps 95 % of the specialists' mean score, at under half the size of one"
    spread = None if student is None else student.kept
    if student is None or spread is None:
        return _claim(text, "no figure", None, Verdict(None, ""), "share")
    size = results.student_size
    why = f"The student has {100.0 * size:.1f} % of a specialist's parameters."
    one_seed = student.kept_is_over_items_only
    if one_seed:
        why += " One seed: the interval is over items, so it can refute the claim, not show it."
    best = spread.high if one_seed else spread.mean
    falls_short = size >= SIZE or (best is not None and best < KEPT)
    reached = not one_seed and spread.low is not None and spread.low >= KEPT
    return _claim(text, "no figure", spread, Verdict(False if falls_short else reached or None, why), "share")


def _taught(results: Measured) -> Claim:
    text = "Taught, a student scores higher than without teachers: mean over tasks, in points"
    alone = results.row("ce")
    difference = None if alone is None else alone.tasks_against_baseline
    if difference is None or (over_items := difference.over_units.p_value) is None:
        return _claim(text, "no test", None, Verdict(None, ""), "score")
    seeds = difference.over_seeds
    items = difference.over_units
    spread = Spread.covering(items.value, seeds, items).times(-1.0).times(100.0)
    if seeds.p_value is None:
        why = f"One seed: the interval and p = {over_items:.2g} are over items."
        return _claim(text, "no test", spread, Verdict(None, why), "score")
    p = max(seeds.p_value, over_items)
    why = f"p = {p:.2g}, the larger of that over seeds and that over items."
    return _claim(text, "no test", spread, Verdict(p < SIGNIFICANT and spread.mean > 0.0, why), "score")


def _percent(change: float) -> str:
    return f"{100.0 * change:+.1f} %"
