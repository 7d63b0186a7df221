"""Time and peak memory of the fused loss against its floor, the naive program and other libraries.

Hidden states and heads in, loss and gradients (student's hidden states, student's head) out; float32,
the same inputs for everyone, in turns. `vs_floor` is our time over that of the bare matrix products,
speed-ups are a contestant's time over ours, peak ratios our peak over a contestant's. Peaks are over the
inputs and hold the gradients, 72 MB for a head of 49,152 x 384. The headline figures are for three teachers.

    python -m benchmarks.fused_loss [--quick] [--num-positions 1024] [--vocab-size 49152] [--rounds 6]
"""

import argparse
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from benchmarks.contestants import Contestant, gradient_differences, naive_loop, naive_stacked, ours
from benchmarks.floor import Floor
from benchmarks.measure import (
    Samples,
    describe_memory_check,
    median_seconds,
    peak_mb,
    peak_ratio,
    process_age,
    rounded,
    take_turns,
    time_ratio,
)
from benchmarks.peers import load_peers
from benchmarks.problem import Problem


Figures = dict[str, object]

HEADLINE_TEACHERS = 3
QUICK_SECONDS = 40.0  # a round that is expected to end later is not begun
QUICK_PEERS = ("trl_gkd",)
LATEST_START = 0.5  # another number of teachers is begun before this share of them
WARM_UP_POSITIONS = 256
LARGE = {"num_positions": 4096, "vocab_size": 151_936}
OURS, FLOOR, NAIVE = "ours", "floor", "naive"


@dataclass(frozen=True)
class Comparison:
    """The samples of all contestants for one number of teachers."""

    samples: Samples
    peers: Sequence[str]

    def figures(self) -> Figures:
        """The figures of this number of teachers, headline keys first."""
        return {
            "vs_floor": time_ratio(self.samples, OURS, FLOOR),
            "speedup_vs_naive": time_ratio(self.samples, NAIVE, OURS),
            "speedup_vs_trl_gkd": time_ratio(self.samples, "trl_gkd", OURS),
            "peak_vs_naive": peak_ratio(self.samples, OURS, NAIVE),
            "peak_mb": peak_mb(self.samples[OURS]),
            "time_s": median_seconds(self.samples[OURS]),
            "floor_s": median_seconds(self.samples[FLOOR]),
            "rounds": len(self.samples[OURS]),
            "peers": {name: self._against(name) for name in self.peers},
        }

    def _against(self, name: str) -> Figures | None:
        if name not in self.samples:
            return None
        return {
            "time_s": median_seconds(self.samples[name]),
            "speedup": time_ratio(self.samples, name, OURS),
            "vs_floor": time_ratio(self.samples, name, FLOOR),
            "peak_mb": peak_mb(self.samples[name]),
            "peak_ratio": peak_ratio(self.samples, OURS, name),
        }


def compare(
    problem: Problem, contestants: Mapping[str, Contestant], names: Sequence[str], *, rounds: int, until: float
) -> Comparison:
    """Measure in turns; print a table.

    Args:
        problem: The inputs.
        contestants: Those to be measured, ours and the floor among them.
        names: Those to be reported beside ours, measured or not.
        rounds: Rounds, at most.
        until: See `take_turns`.
    """
    calls = {name: functools.partial(contestant, problem) for name, contestant in contestants.items()}
    samples = take_turns(calls, rounds=rounds, before=problem.clear_gradients, until=until)
    print(f"\n{problem.num_teachers} teachers, {len(samples[OURS])} rounds", flush=True)
    print(f"{'':16}{'time s':>9}{'x floor':>9}{'x ours':>9}{'peak MB':>9}")
    for name in calls:
        ratios = (time_ratio(samples, name, FLOOR) or 0.0, time_ratio(samples, name, OURS) or 0.0)
        times = f"{median_seconds(samples[name]):9.3f}{ratios[0]:9.2f}{ratios[1]:9.2f}"
        print(f"{name:16}{times}{peak_mb(samples[name]) or float('nan'):9.0f}", flush=True)
    return Comparison(samples, names)


def measure_large() -> Figures:
    """Ours alone where a naive loss would need gigabytes."""
    problem = Problem.build(**LARGE, num_teachers=HEADLINE_TEACHERS)
    ours(problem.first_positions(WARM_UP_POSITIONS))
    calls = {OURS: functools.partial(ours, problem)}
    samples = take_turns(calls, rounds=2, before=problem.clear_gradients)[OURS]
    gradients = problem.student_head.weight.nbytes + problem.student_hidden.nbytes
    figures: Figures = {
        **LARGE,
        "peak_mb": peak_mb(samples),
        "gradients_mb": gradients / 2**20,
        "logits_mb": LARGE["num_positions"] * LARGE["vocab_size"] * 4 / 2**20,
        "time_s": median_seconds(samples),
    }
    print(f"\nlarge: {rounded(figures)}", flush=True)
    return figures


def warm_up(problem: Problem, contestants: Mapping[str, Contestant]) -> None:
    """Let everyone compile and load what is loaded once, for compiling takes memory too; compare gradients."""
    start = process_age()
    differences = gradient_differences(problem.first_positions(WARM_UP_POSITIONS), ours, naive_loop)
    for contestant in contestants.values():
        contestant(problem)
    problem.clear_gradients()
    of_hidden, of_head = (f"{difference:.1e}" for difference in differences)
    print(f"warm-up {process_age() - start:.1f} s", flush=True)
    print(f"our gradients differ from the naive ones by {of_hidden} and {of_head} of the largest (hidden, head)")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print; the last line is JSON."""
    options = _parse(arguments)
    until = QUICK_SECONDS if options.quick else float("inf")
    problem = Problem.build(
        num_positions=options.num_positions, vocab_size=options.vocab_size, num_teachers=max(options.teachers)
    )
    print(f"{torch.get_num_threads()} threads, N={problem.num_positions}, V={problem.vocab_size}")
    print(describe_memory_check(), flush=True)
    floor = _find_floor(problem, quick=options.quick)
    print(f"floor: {floor}", flush=True)
    contestants, names = _contestants(floor, quick=options.quick)
    warm_up(problem, {} if options.quick else contestants)
    results: dict[int, Figures | None] = {}
    for num_teachers in options.teachers:
        if results and process_age() > until * LATEST_START:
            results[num_teachers] = None
            continue
        part = problem.with_teachers(num_teachers)
        results[num_teachers] = compare(part, contestants, names, rounds=options.rounds, until=until).figures()
    large = None if options.quick or options.no_large else measure_large()
    setup = {"num_positions": problem.num_positions, "vocab_size": problem.vocab_size, "quick": options.quick}
    print(json.dumps(rounded(_summary(results, large, {**setup, "floor": str(floor)}))))


def _contestants(floor: Floor, *, quick: bool) -> tuple[dict[str, Contestant], list[str]]:
    """Who is measured, and who is reported beside ours, available or not."""
    own: dict[str, Contestant] = {FLOOR: floor, OURS: ours, NAIVE: naive_loop}
    if not quick:
        own["naive_stacked"] = naive_stacked
    peers = load_peers(QUICK_PEERS if quick else None)
    available = {name: peer for name, peer in peers.items() if peer is not None}
    return own | available, [name for name in (*own, *peers) if name not in (OURS, FLOOR)]


def _summary(results: Mapping[int, Figures | None], large: Figures | None, setup: Mapping[str, object]) -> Figures:
    headline = results.get(HEADLINE_TEACHERS) or {}
    others = {f"m{m}": figures for m, figures in results.items() if m != HEADLINE_TEACHERS}
    return {
        **headline,
        **others,
        "large_vocabulary": large,
        "setup": {**setup, "threads": torch.get_num_threads()},
    }


def _find_floor(problem: Problem, *, quick: bool) -> Floor:
    rows = min(256 if quick else 1024, problem.num_positions)
    chunk_sizes = (128, 256) if quick else (64, 128, 256, 1024)
    return Floor.find(problem, chunk_sizes=chunk_sizes, rows=rows, repeats=1 if quick else 3)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The fused loss against its floor, naive programs and peers.")
    parser.add_argument("--quick", action="store_true", help="within 45 s: fewer rounds and contestants")
    parser.add_argument("--num-positions", type=int, default=1024)
    parser.add_argument("--vocab-size", type=int, default=49_152)
    parser.add_argument("--teachers", type=int, nargs="+", help="numbers of teachers, in turn (3 1 5)")
    parser.add_argument("--rounds", type=int, help="rounds, at most (6, the first of them for memory; quick: 3)")
    parser.add_argument("--no-large", action="store_true", help="leave out the large vocabulary")
    options = parser.parse_args(arguments)
    options.teachers = options.teachers or ([3, 1] if options.quick else [3, 1, 5])
    options.rounds = options.rounds or (3 if options.quick else 6)
    return options


if __name__ == "__main__":
    main()
