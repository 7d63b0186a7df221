"""`docs/metrics.md` has each metric that `metric_names` can spell, and no other."""

from collegium.report import metric_names as names
from tests.support.metrics_table import is_in_the_table, rows


NO_METRICS = {names.FUSED, names.TARGET}
"""Names of rules."""

CONSTANTS = {
    value
    for name, value in vars(names).items()
    if name.isupper() and not name.startswith("_") and isinstance(value, str)
} - NO_METRICS


def with_names() -> set[str]:
    """Keys that are made of names and numbers, with words in their place."""
    counts = {names.read(part, domain) for part in names.READ for domain in (None, "DOMAIN")}
    perplexities = {names.perplexity_of_domain("DOMAIN", who) for who in ("student", "target")}
    certain = {names.certainty("STRETCH", part) for part in ("right", "chance", "count")}
    terms = {names.feature_term("I"), names.cross_tokenizer_term("I")}
    return {names.rule_nll("RULE"), names.share_of_domain("DOMAIN"), *counts, *perplexities, *certain, *terms}


def of_parts() -> set[str]:
    """Metrics of one teacher, alone and in a term."""
    term = names.below(names.cross_tokenizer_term("I"), "NAME")
    paths = ((names.of_teacher("NAME", metric), names.below(term, metric)) for metric in CONSTANTS)
    return {path for both in paths for path in both}


def test_each_metric_has_a_row():
    keys = set(rows())
    lacking = {metric for metric in CONSTANTS if not any(f"/{key}".endswith(f"/{metric}") for key in keys)}
    lacking |= with_names() - keys
    assert not lacking, f"docs/metrics.md lacks {sorted(lacking)}"


def test_each_row_is_of_a_metric():
    unknown = set(rows()) - CONSTANTS - with_names() - of_parts()
    assert not unknown, f"docs/metrics.md has rows of metrics that nobody spells: {sorted(unknown)}"


def test_each_row_is_whole():
    for key, cells in rows().items():
        assert len(cells) == 4 and all(cells), f"{key}: unit, meaning, present, shown"


def test_keys_of_logs_are_recognised():
    assert is_in_the_table("train/teacher/a b/weight") and is_in_the_table("train/feature/3")
    assert is_in_the_table("eval/kl/common") and not is_in_the_table("train/unheard_of")
