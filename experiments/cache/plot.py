"""Draws docs/cache.svg from results.json: error of the gradient against bytes a token.

python experiments/cache/plot.py
"""

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes


HERE = Path(__file__).parent
OUTPUT = HERE.parents[1] / "docs" / "cache.svg"
BAR = 0.02
CURVES = {  # label: (kept begins with, tail, colour, marker); colours of Okabe and Ito
    "above a probability, capped bucket (ours)": ("p>=", "bucket", "#0072B2", "o"),
    "k most probable, capped bucket": ("k=", "bucket", "#56B4E9", "s"),
    "k most probable, plain bucket": ("k=", "bucket without a cap", "#E69F00", "^"),
    "k most probable, uniform tail": ("k=", "uniform", "#009E73", "v"),
    "k most probable, unigram tail": ("k=", "unigram", "#CC79A7", "D"),
    "k most probable, renormalised": ("k=", "renormalize", "#D55E00", "x"),
    "drawn tokens": ("draws=", "bucket", "#555555", "P"),
}
PANELS = (
    ("another teacher", "logits"),
    ("another teacher", "hidden"),
    ("untrained", "logits"),
    ("untrained", "hidden"),
)
TITLES = {
    ("another teacher", "logits"): "student near the teacher: logits",
    ("another teacher", "hidden"): "student near the teacher: hidden states",
    ("untrained", "logits"): "student before training: logits",
    ("untrained", "hidden"): "student before training: hidden states",
}


def main() -> None:
    """Draw."""
    errors = json.loads((HERE / "results.json").read_text())["errors"]
    plt.rcParams |= {"font.size": 9, "svg.hashsalt": "collegium", "svg.fonttype": "none"}
    figure, axes = plt.subplots(2, 2, figsize=(8.5, 7), sharex=True)
    for axis, panel in zip(axes.flat, PANELS, strict=True):
        _draw(axis, errors, *panel)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=2, frameon=False)
    figure.tight_layout(rect=(0, 0.13, 1, 1))
    figure.savefig(OUTPUT, metadata={"Date": None})


def _draw(axis: Axes, errors: list[dict[str, Any]], student: str, gradient: str) -> None:
    for label, (prefix, tail, colour, marker) in CURVES.items():
        points = sorted(
            (row["bytes"], row["error"][student][gradient])
            for row in errors
            if row["bytes"] and row["kept"].startswith(prefix) and row["tail"] == tail
        )
        axis.plot(
            *zip(*points, strict=True), color=colour, marker=marker, markersize=4, linewidth=1.2, label=label
        )
    axis.axhline(BAR, color="black", linewidth=0.8, linestyle=":")
    axis.axvline(128, color="black", linewidth=0.8, linestyle=":")
    axis.set(xscale="log", yscale="log", title=TITLES[student, gradient])
    axis.set_xlabel("bytes a token, on disk")
    axis.set_ylabel("relative error of the gradient")
    axis.set_xticks([32, 64, 128, 256], ["32", "64", "128", "256"])
    axis.set_yticks([0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0], ["1 %", "2 %", "5 %", "10 %", "20 %", "50 %", "100 %"])
    axis.minorticks_off()
    axis.grid(alpha=0.25)


if __name__ == "__main__":
    main()
