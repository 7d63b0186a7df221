"""Results of finished runs, read from their JSON: corpus figures on validation and test documents.

Held-out documents are numbered in each domain. Those of even number are for validation, by which learning rates
and the best teacher are chosen; the others are for the test, and only these are shown.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collegium.base.digests import read_sealed
from collegium.report.metric_names import CONFIDENCE_GAPS, KL, KL_EXPERT, NLL, kl_of_earlier_results, of_teacher


Floats = NDArray[np.float64]

MAKE_AGAIN = "delete it, and the same command makes it again"

VALIDATION = slice(0, None, 2)
TEST = slice(1, None, 2)


@dataclass(frozen=True)
class RunResult:
    """The result of one run; `collegium.paper.work` writes it.

    Attributes:
        content: Its JSON.
    """

    content: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> "RunResult":
        """Read the result of a finished run.

        Raises:
            DataError: it is damaged.
        """
        return cls(read_sealed(path, fix=MAKE_AGAIN))

    @property
    def steps(self) -> int:
        """Steps of its training."""
        return int(self.content["steps"])

    @property
    def seconds(self) -> float:
        """Seconds that training and measuring took."""
        return float(self.content["seconds"])

    @property
    def num_parameters(self) -> int:
        """Parameters of the student."""
        return int(self.content["parameters"])

    @property
    def has_own_target(self) -> bool:
        """Tell whether it was measured against its own target too."""
        return bool(self.content.get("own"))

    @property
    def continuations(self) -> Mapping[str, float] | None:
        """Figures of what the student writes; None if it was not asked to."""
        written: Mapping[str, float] | None = self.content["continuations"]
        return written

    @property
    def tasks(self) -> Mapping[str, Mapping[str, Any]]:
        """The `value` and the statistics `per_item` of each task."""
        tasks: Mapping[str, Mapping[str, Any]] = self.content["tasks"]
        return tasks

    @property
    def domains(self) -> list[str]:
        """Domains of the held-out text."""
        return list(self.content["tables"])

    def sums(self, figure: str, domain: str, split: slice) -> tuple[Floats, Floats]:
        """Return the sum of a figure and the number of tokens for each document."""
        table = self.content["tables"][domain]
        tokens = np.array(table["tokens"], np.float64)[split]
        figures = table["figures"]
        return np.array(figures[_key(figure, domain, figures)], np.float64)[split], tokens

    def has(self, figure: str) -> bool:
        """Tell whether a figure was measured in all domains."""
        tables = self.content["tables"].items()
        return all(_key(figure, domain, table["figures"]) in table["figures"] for domain, table in tables)

    def by_domain(self, figure: str, split: slice = TEST) -> dict[str, float]:
        """Ratio of a figure's sum to the tokens, for each domain."""
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
            nll = np.array(table["figures"][NLL], np.float64)[TEST].sum()
            values.append(float(nll / math.log(2) / np.array(table["bytes"])[TEST].sum()))
        return sum(values) / len(values)

    @cached_property
    def ece(self) -> float | None:
        """Expected calibration error of the most probable token, plain mean over domains, on test documents."""
        values = []
        for table in self.content["tables"].values():
            if CONFIDENCE_GAPS not in table:
                return None
            gaps = np.array(table[CONFIDENCE_GAPS], np.float64)[TEST].sum(0)
            values.append(float(np.abs(gaps).sum() / np.array(table["tokens"])[TEST].sum()))
        return sum(values) / len(values)


def _key(figure: str, domain: str, figures: Mapping[str, Any]) -> str:
    """Key of a figure in the tables; `KL_EXPERT` is the KL to the teacher of the domain's name."""
    if figure != KL_EXPERT:
        return figure
    metric = of_teacher(domain, KL)
    return metric if metric in figures else kl_of_earlier_results(domain)


def averaged(results: Sequence[RunResult], figure: str) -> dict[str, tuple[Floats, Floats]]:
    """Average the sums of each test document over seeds; by domain, beside the tokens."""
    return {
        domain: (
            np.mean([result.sums(figure, domain, TEST)[0] for result in results], axis=0),
            results[0].sums(figure, domain, TEST)[1],
        )
        for domain in results[0].domains
    }
