"""Figures of finished runs: corpus figures by split, and how sure a difference between two rows is.

Held-out documents are numbered in each domain; those of even number are for validation, by which learning
rates and the best teacher are chosen, the others for the test, which is all that is shown.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray


Floats = NDArray[np.float64]

VALIDATION = slice(0, None, 2)
TEST = slice(1, None, 2)


@dataclass(frozen=True)
class Result:
    """What one run came to: its JSON."""

    content: Mapping[str, Any]

    @property
    def domains(self) -> list[str]:
        """Of the held-out text."""
        return list(self.content["tables"])

    def sums(self, figure: str, domain: str, split: slice) -> tuple[Floats, Floats]:
        """Sum of a figure and number of tokens of each document."""
        table = self.content["tables"][domain]
        tokens = np.array(table["tokens"], np.float64)[split]
        return np.array(table["figures"][_key(figure, domain)], np.float64)[split], tokens

    def has(self, figure: str) -> bool:
        """Whether it is there in all domains."""
        tables = self.content["tables"].items()
        return all(_key(figure, domain) in table["figures"] for domain, table in tables)

    def by_domain(self, figure: str, split: slice = TEST) -> dict[str, float]:
        """Ratio of sums of each domain."""
        ratios = {}
        for domain in self.domains:
            sums, tokens = self.sums(figure, domain, split)
            ratios[domain] = float(sums.sum() / tokens.sum())
        return ratios

    def mean(self, figure: str, split: slice = TEST) -> float:
        """Plain mean over domains, nats per token for a loss."""
        ratios = self.by_domain(figure, split)
        return sum(ratios.values()) / len(ratios)

    @cached_property
    def bits_per_byte(self) -> float:
        """Plain mean over domains, on test documents."""
        values = []
        for table in self.content["tables"].values():
            nll = np.array(table["figures"]["nll"], np.float64)[TEST].sum()
            values.append(float(nll / math.log(2) / np.array(table["bytes"])[TEST].sum()))
        return sum(values) / len(values)

    @cached_property
    def ece(self) -> float | None:
        """Expected calibration error of the most probable token, plain mean over domains, on test documents."""
        values = []
        for table in self.content["tables"].values():
            if "confidence_gaps" not in table:
                return None
            gaps = np.array(table["confidence_gaps"], np.float64)[TEST].sum(0)
            values.append(float(np.abs(gaps).sum() / np.array(table["tokens"])[TEST].sum()))
        return sum(values) / len(values)


def _key(figure: str, domain: str) -> str:
    """`kl/expert` is the KL to the teacher of the domain's name."""
    return f"kl/{domain}" if figure == "kl/expert" else figure


def averaged(results: Sequence[Result], figure: str) -> dict[str, tuple[Floats, Floats]]:
    """Sums and tokens of each test document by domain, averaged over seeds."""
    return {
        domain: (
            np.mean([result.sums(figure, domain, TEST)[0] for result in results], axis=0),
            results[0].sums(figure, domain, TEST)[1],
        )
        for domain in results[0].domains
    }
