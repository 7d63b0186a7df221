"""Results of `collegium preflight` as tables for people or JSON for programs."""

import math

from collegium.base.terminal import duration, number_row, show, show_json, show_table, size
from collegium.cli.tables import show_temperatures, show_tokenizers
from collegium.evaluation.cost import RunCost
from collegium.evaluation.preflight import Preflight
from collegium.pipeline.preflight.as_json import preflight_as_json
from collegium.report.interval import Difference


def show_preflight(result: Preflight, cost: RunCost | None, *, as_json: bool) -> None:
    """Show losses by domain, the teachers' certainty and weights, the cost, and the verdict last."""
    if as_json:
        show_json(preflight_as_json(result, cost))
        return
    for pair in result.tokenizers:
        if pair.kind == "same" and not pair.warnings:
            show(f"Teacher {pair.teacher}: {pair.verdict}")
        else:
            show_tokenizers([pair])
    _show_losses(result)
    if result.gains:
        _show_gains(result)
    _show_teachers(result)
    if len(result.teachers) > 1:
        _show_conflict(result)
    if result.temperatures:
        show_temperatures(result.temperatures)
    if cost is not None:
        _show_cost(cost)
    show("\n".join(["Verdict", "", *(f"- {line}" for line in result.verdict)]))


def _show_losses(result: Preflight) -> None:
    domains = list(result.oracle)
    held_out = [
        ["documents", *(f"{count:,}" for count in result.documents.values()), ""],
        ["tokens", *(f"{count:,}" for count in result.tokens.values()), ""],
    ]
    losses = [number_row(f"teacher {name}", row, domains) for name, row in result.teachers.items()]
    losses += [number_row(f"fused: {name}", row, domains) for name, row in result.rules.items()]
    losses.append(number_row("with hindsight: best teacher of each domain", result.oracle, domains))
    losses.append(number_row("with hindsight: of each document", result.oracle_document, domains))
    losses.append(number_row("with hindsight: of each token (no mixture is below)", result.oracle_token, domains))
    show_table("Loss on held-out text, nats per token (lower is better)", ["", *domains], held_out + losses)


def _show_gains(result: Preflight) -> None:
    rows = [
        [f"fused: {name}", gain.shown(3, sign="+"), _ends(gain), _number(gain.p_value)]
        for name, gain in result.gains.items()
    ]
    title = f"Gain over the best single teacher ({result.best_teacher}), nats, mean over domains (above 0 is good)"
    show_table(title, ["", "gain", "interval", "p"], rows)


def _show_teachers(result: Preflight) -> None:
    domains = list(result.oracle)
    rows = []
    for name in result.teachers:
        rows.append(number_row(f"{name}: loss minus entropy", result.calibration_gap[name], domains))
        if name in result.ece:
            rows.append(number_row(f"{name}: calibration error", result.ece[name], domains))
        if min(result.heard[name].values()) < 1.0:
            rows.append(number_row(f"{name}: share of the tokens where it speaks", result.heard[name], domains))
        if len(result.teachers) > 1:
            rows.append(number_row(f"{name}: mean weight", result.weights[name], domains))
    title = "Teachers: loss minus entropy (0 is calibrated, above 0 overconfident), ECE, weight under the recipe"
    show_table(title, ["", *domains], rows)


def _show_conflict(result: Preflight) -> None:
    domains = list(result.oracle)
    rows = []
    for stretch, found in result.certainty.items():
        rows.append(number_row(f"least uncertain is best, {stretch}", found.right, domains))
        rows.append(number_row("  by chance", found.chance, domains))
    rows.append(number_row("conflict, nats", result.conflict, domains))
    rows.append(number_row("  95th percentile", result.conflict_95, domains))
    rows.append(number_row("effective number of teachers", result.effective_teachers, domains))
    show_table("Among the teachers", ["", *domains], rows)
    names = list(result.pairs)
    pairs = [[one, *(_number(result.pairs[one][other]) for other in names)] for one in names]
    show_table("Jensen-Shannon divergence of each pair, nats (0.693 at most)", ["", *names], pairs)


def _show_cost(cost: RunCost) -> None:
    rows = [[f"time: {name}", duration_with_tenths(seconds)] for name, seconds in cost.seconds.items()]
    rows.append(["time in total", duration_with_tenths(cost.total_seconds)])
    if cost.memory_bytes is not None:
        rows.append(["peak memory", size(cost.memory_bytes)])
    if cost.device_memory_bytes is not None:
        rows.append(["peak GPU memory", size(cost.device_memory_bytes)])
    rows += [[f"disk: {name}", size(num_bytes)] for name, num_bytes in cost.disk_bytes.items()]
    rows.append(["disk in total", size(cost.total_disk_bytes)])
    if cost.passing_bytes:
        rows.append(["  extra while a checkpoint is replaced", size(cost.passing_bytes)])
    steps = f"{cost.num_steps:,} steps of {cost.step_seconds:.3g} s, from {cost.steps_tried} timed ones"
    show_table(f"What the run takes on this machine ({steps})", ["", "about"], rows)
    for note in cost.notes:
        show(f"note: {note}")


def duration_with_tenths(seconds: float) -> str:
    """Format seconds, such as `0.4s` below ten seconds and as `duration` does above."""
    return f"{seconds:.1f}s" if seconds < 10 else duration(seconds)


def _ends(gain: Difference) -> str:
    return f"[{gain.ends(3, between=', ', sign='+')}]" if gain.has_ends else "not known"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
