"""The command line, with few rows of table 1."""

import sys
from collections.abc import Sequence
from dataclasses import replace

from collegium.cli import main
from collegium.reproduce import command
from collegium.reproduce.experiment import Best, Experiment, Row
from collegium.reproduce.specification import Specification
from collegium.reproduce.table1 import table1


NAMES = {"ce", "ours", "single_cats", "single_dogs", "best_single"}


def few_rows(specification: Specification) -> Experiment:
    """Rows of each kind: without teachers, with all, and those that wait for the best one."""
    whole = table1(specification)

    def rows(best: Best) -> Sequence[Row]:
        return [row for row in whole.rows(best) if row.name in NAMES]

    return replace(whole, rows=rows)


if __name__ == "__main__":
    command.EXPERIMENTS["table1"] = few_rows
    sys.exit(main())
