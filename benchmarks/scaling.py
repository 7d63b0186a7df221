"""How time and memory of the fused loss grow with positions N, vocabulary V and teachers M.

For N and V the figure is the exponent of a power law, the slope of a straight line through the logarithms:
1 is linear, 0 is flat. For M a power law is the wrong model, since the student's part is there at
M = 0 too; so t(M) = a + b M is fitted, its worst relative residual says how straight it is, and the
exponent is that of t(M) - t(0), with t(0) measured: the same loss without teachers. Peaks are over
the inputs. The head's own gradient is part of them and grows with V by definition, so the
exponent in V is given without it too.

    python -m benchmarks.scaling [--quick] [--rounds 3]
"""

import argparse
import functools
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from benchmarks.contestants import ours
from benchmarks.measure import (
    MEBIBYTE,
    describe_memory_check,
    median_seconds,
    peak_mb,
    process_age,
    rounded,
    take_turns,
)
from benchmarks.problem import Problem


Figures = dict[str, object]

QUICK_SECONDS = 40.0
POSITIONS, VOCABULARY, TEACHERS = 1024, 49_152, 3
SIZES = {
    "positions": (1024, 2048, 4096, 8192),
    "vocabulary": (12_288, 24_576, 49_152, 98_304, 200_704),
    "teachers": (0, 1, 2, 3, 4, 5, 6),
}
QUICK_SIZES = {
    "positions": (256, 512, 1024),
    "vocabulary": (12_288, 24_576, 49_152),
    "teachers": (0, 1, 2, 3),
}
TINY_SIZES = {"positions": (128, 256), "vocabulary": (512, 1024), "teachers": (0, 1, 2)}


@dataclass(frozen=True)
class Curve:
    """Medians and peaks along one axis."""

    sizes: Sequence[int]
    seconds: Sequence[float]
    peaks_mb: Sequence[float | None]

    def figures(self) -> Figures:
        """The points and the exponents of time and peak memory."""
        return {
            "sizes": list(self.sizes),
            "time_s": list(self.seconds),
            "peak_mb": list(self.peaks_mb),
            "time_exponent": exponent(self.sizes, self.seconds),
            "memory_exponent": exponent(self.sizes, self.peaks_mb),
        }


def exponent(sizes: Sequence[float], values: Sequence[float | None]) -> float | None:
    """Slope of log(value) over log(size), sizes of 0 left out; None if a value is missing or not positive."""
    points = [(size, value) for size, value in zip(sizes, values, strict=True) if size > 0]
    logs = [(math.log(size), math.log(value)) for size, value in points if value is not None and value > 0]
    if len(logs) < max(2, len(points)):
        return None
    return statistics.linear_regression(*zip(*logs, strict=True)).slope


def trace(problems: Mapping[int, Problem], *, rounds: int, until: float) -> Curve:
    """Measure ours on every problem, all sizes once a round; each runs once before that."""
    calls = {str(size): functools.partial(ours, problem) for size, problem in problems.items()}

    def forget() -> None:
        for problem in problems.values():
            problem.clear_gradients()

    take_turns(calls, rounds=1, before=forget)
    samples = take_turns(calls, rounds=rounds, before=forget, until=until)
    taken = list(samples.values())
    return Curve(list(problems), [median_seconds(s) for s in taken], [peak_mb(s) for s in taken])


def along_positions(sizes: Sequence[int], *, vocabulary: int, rounds: int, until: float) -> Figures:
    """Growth with N."""
    widest = Problem.build(num_positions=max(sizes), vocab_size=vocabulary, num_teachers=TEACHERS)
    problems = {size: widest.first_positions(size) for size in sizes}
    return trace(problems, rounds=rounds, until=until).figures()


def along_vocabulary(sizes: Sequence[int], *, positions: int, rounds: int, until: float) -> Figures:
    """Growth with V. Above the default chunk's size limit chunks get shorter, so memory stays."""
    problems = {
        size: Problem.build(num_positions=positions, vocab_size=size, num_teachers=TEACHERS) for size in sizes
    }
    curve = trace(problems, rounds=rounds, until=until)
    gradients = [problem.student_head.weight.nbytes / MEBIBYTE for problem in problems.values()]
    without = [
        None if peak is None else peak - gradient for peak, gradient in zip(curve.peaks_mb, gradients, strict=True)
    ]
    return {
        **curve.figures(),
        "head_gradient_mb": gradients,
        "memory_exponent_without_head_gradient": exponent(sizes, without),
    }


def along_teachers(sizes: Sequence[int], *, positions: int, vocabulary: int, rounds: int, until: float) -> Figures:
    """Growth with M; `sizes` begin with 0."""
    widest = Problem.build(num_positions=positions, vocab_size=vocabulary, num_teachers=max(sizes))
    curve = trace({size: widest.with_teachers(size) for size in sizes}, rounds=rounds, until=until)
    alone, *seconds = curve.seconds
    fit = statistics.linear_regression(sizes[1:], seconds)
    residuals = [
        abs(second - (fit.intercept + fit.slope * size)) / second
        for size, second in zip(sizes[1:], seconds, strict=True)
    ]
    return {
        **curve.figures(),
        "time_exponent": exponent(sizes[1:], [second - alone for second in seconds]),
        "fit_a_s": fit.intercept,
        "fit_b_s": fit.slope,
        "fit_worst_residual": max(residuals),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print; the last line is JSON."""
    options = _parse(arguments)
    until = QUICK_SECONDS if options.quick else float("inf")
    sizes = QUICK_SIZES if options.quick else TINY_SIZES if options.tiny else SIZES
    positions = min(sizes["positions"]) if options.quick or options.tiny else POSITIONS
    vocabulary = max(sizes["vocabulary"]) if options.tiny else VOCABULARY
    print(f"{torch.get_num_threads()} threads")
    print(describe_memory_check(), flush=True)
    common = {"rounds": options.rounds, "until": until}
    results: dict[str, Figures] = {}
    results["positions"] = along_positions(sizes["positions"], vocabulary=vocabulary, **common)
    _print(results, "positions")
    results["vocabulary"] = along_vocabulary(sizes["vocabulary"], positions=positions, **common)
    _print(results, "vocabulary")
    results["teachers"] = along_teachers(sizes["teachers"], positions=positions, vocabulary=vocabulary, **common)
    _print(results, "teachers")
    exponents = {
        f"{kind}_exponent_{axis}": figures[f"{kind}_exponent"]
        for axis, figures in results.items()
        for kind in ("time", "memory")
    }
    setup = {"quick": options.quick, "threads": torch.get_num_threads(), "seconds": process_age()}
    print(json.dumps(rounded(exponents | results | {"setup": setup})))


def _print(results: Mapping[str, Figures], axis: str) -> None:
    print(f"\n{axis}", flush=True)
    for name, figure in results[axis].items():
        print(f"  {name:38} {rounded(figure)}", flush=True)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Growth of the fused loss with positions, vocabulary, teachers.")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="smaller sizes, fewer rounds")
    size.add_argument("--tiny", action="store_true", help="sizes that say nothing, to try the program")
    parser.add_argument("--rounds", type=int, help="rounds, at most (3; quick: 1)")
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (1 if options.quick else 3)
    return options


if __name__ == "__main__":
    main()
