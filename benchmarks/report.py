"""The results of all benchmarks as a Markdown page."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


Results = Mapping[str, Any]
"""What the benchmarks printed as JSON, by benchmark, and `machine`."""


def render(results: Results) -> str:
    """The whole page. A benchmark that failed is named as such; one that never ran is left out."""
    sections = {
        "fused_loss": _fused_loss,
        "train_step": _train_step,
        "methods": _methods,
        "cache": _cache,
        "scaling": _scaling,
    }
    parts = ["# Benchmarks", _machine(results["machine"])]
    for name, section in sections.items():
        if name in results:
            parts.append(section(results[name]) if results[name] else f"## {name}\n\nIt failed.")
    return "\n\n".join(parts) + "\n"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; figures get three digits, None a dash."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(map(_cell, row)) + " |" for row in rows)])


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def _machine(machine: Mapping[str, Any]) -> str:
    peers = ", ".join(f"{name} {version or '(not installed)'}" for name, version in machine["peers"].items())
    return (
        f"`python -m benchmarks` wrote this file on {machine['date']}.\n\n"
        f"{machine['cpu']}, {machine['cores']} cores ({', '.join(machine['isa'])}), {machine['ram_gb']} GB; "
        f"torch {machine['torch']}, transformers {machine['transformers']}, Python {machine['python']}; "
        f"{peers}.\n\n"
        "Contestants take turns in one process; times are medians, ratios medians of the ratios within a round. "
        "Peaks are what the kernel counts as resident over what was there before the call, gradients included, "
        "in MB of 2^20 bytes."
    )


def _fused_loss(results: Results) -> str:
    setup = results["setup"]
    blocks = [
        f"## The loss: N = {setup['num_positions']:,}, V = {setup['vocab_size']:,}, float32, "
        f"{setup['threads']} threads",
        "Hidden states and heads in, loss and gradients out. `floor` is the matrix products alone "
        f"({setup['floor']}). Other libraries' losses are called once per teacher and mix nothing; "
        "`_jsd` marks their default divergence, the others compute the forward KL as ours does.",
    ]
    sections = [(3, results), *((int(key[1:]), results[key]) for key in results if _is_number(key))]
    for num_teachers, figures in sorted(sections, key=lambda section: section[0]):
        if figures and "peers" in figures:
            blocks += [f"### Teachers: {num_teachers} ({figures['rounds']} rounds)", _loss_table(figures)]
    large = results.get("large_vocabulary")
    if large:
        blocks.append(
            f"At N = {large['num_positions']:,} and V = {large['vocab_size']:,} (3 teachers) ours peaks at "
            f"{_cell(large['peak_mb'])} MB, of which {_cell(large['gradients_mb'])} MB are the gradients; the "
            f"logits of one model would be {_cell(large['logits_mb'])} MB. It takes {_cell(large['time_s'])} s."
        )
    return "\n\n".join(blocks)


def _is_number(key: str) -> bool:
    return key[:1] == "m" and key[1:].isdigit()


def _loss_table(figures: Results) -> str:
    rows: list[Sequence[object]] = [
        ("floor", figures["floor_s"], 1.0, figures["floor_s"] / figures["time_s"], None, None),
        ("**ours**", figures["time_s"], figures["vs_floor"], 1.0, figures["peak_mb"], 1.0),
    ]
    for name, peer in figures["peers"].items():
        keys = ("time_s", "vs_floor", "speedup", "peak_mb", "peak_ratio")
        rows.append((name, *(peer[key] if peer else None for key in keys)))
    header = ("", "time s", "x floor", "time, ours = 1", "peak MB", "our peak / its")
    return table(header, rows)


def _train_step(results: Results) -> str:
    setup = results["setup"]
    sizes = {name: f"{count / 1e6:.1f}M" for name, count in setup["parameters"].items()}
    rows = [(name, step["time_s"], step["peak_mb"]) for name, step in results["steps"].items()]
    ratios = [
        (f"one teacher against {name}", results[f"speedup_vs_{key}"], results[f"peak_vs_{key}"])
        for name, key in (
            ("TRL's GKD, forward KL", "trl_gkd"),
            ("TRL's GKD, its default JSD", "trl_gkd_jsd"),
            ("naive", "naive_m1"),
        )
    ]
    ratios.append(("three teachers against naive", results["speedup_vs_naive_m3"], results["peak_vs_naive_m3"]))
    return "\n\n".join(
        [
            f"## A whole step: teachers {sizes['teacher']}, student {sizes['student']}, batch "
            f"{' x '.join(map(str, setup['batch']))} tokens, {results['rounds']} rounds",
            table(("step", "time s", "peak MB"), rows),
            table(("fused", "times as fast", "share of its peak"), ratios),
        ]
    )


def _methods(results: Results) -> str:
    setup = results["setup"]
    sizes = {name: f"{count / 1e6:.1f}M" for name, count in setup["parameters"].items()}
    keys = ("time_s", "time_vs_kd", "peak_mb", "peak_vs_kd")
    rows = [(name, *(method[key] for key in keys)) for name, method in results["methods"].items()]
    blocks = [
        f"## A step of each method: {setup['teachers']} teachers of {sizes['teacher']}, student "
        f"{sizes['student']}, batch {' x '.join(map(str, setup['batch']))} tokens, {results['rounds']} rounds",
        table(("method", "time s", "time, kd = 1", "peak MB", "peak, kd = 1"), rows),
    ]
    if results["skipped"]:
        reasons = [f"- `{name}`: {reason}" for name, reason in results["skipped"].items()]
        blocks.append("\n".join(["Left out, as no step by itself:", "", *reasons]))
    return "\n\n".join(blocks)


def _cache(results: Results) -> str:
    sizes = {name: f"{count / 1e6:.1f}M" for name, count in results["setup"]["parameters"].items()}
    rows = [(name, step["time_s"], step["peak_mb"]) for name, step in results["steps"].items()]
    return "\n\n".join(
        [
            f"## Teachers on disk: teachers {sizes['teacher']}, student {sizes['student']}, "
            f"{results['setup']['tokens']} tokens a step, {results['rounds']} rounds",
            table(("step", "time s", "peak MB"), rows),
            f"Three cached teachers are {_cell(results['speedup_vs_naive_online'])} times as fast as the same "
            "three online by the naive loop and "
            f"{_cell(results['speedup_vs_fused_online'])} times as fast as online by "
            f"ours, at {_cell(results['vs_cross_entropy'])} times the cost of cross-entropy alone; reading and "
            f"checking is in the step. A random read takes {_cell(results['read_ms_per_row'])} ms a block, "
            f"`verify` {_cell(results['verify_mb_per_s'])} MB/s.",
            f"Making a cache takes {_cell(results['writing_vs_forward'])} times the teacher's forward pass with "
            f"its logits (lists), {_cell(results['writing_hidden_states_vs_forward'])} times (hidden states): it "
            "scores, compresses and syncs to disk.",
        ]
    )


def _scaling(results: Results) -> str:
    blocks = ["## Growth of ours"]
    for axis, letter in (("positions", "N"), ("vocabulary", "V"), ("teachers", "M")):
        curve = results[axis]
        points = zip(curve["sizes"], curve["time_s"], curve["peak_mb"], strict=True)
        blocks.append(table((letter, "time s", "peak MB"), points))
        blocks.append(_growth(axis, letter, curve))
    return "\n\n".join(blocks)


def _growth(axis: str, letter: str, curve: Results) -> str:
    time, memory = _cell(curve["time_exponent"]), _cell(curve["memory_exponent"])
    if axis == "teachers":
        return (
            f"t(M) = {_cell(curve['fit_a_s'])} + {_cell(curve['fit_b_s'])} M seconds, worst residual "
            f"{curve['fit_worst_residual']:.1%}; t(M) - t(0) grows as M^{time}, the peak as M^{memory}."
        )
    text = f"Time grows as {letter}^{time}, the peak as {letter}^{memory}"
    if axis == "vocabulary":
        without = _cell(curve["memory_exponent_without_head_gradient"])
        text += f", without the head's own gradient as V^{without}"
    return text + "."
