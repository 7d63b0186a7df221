"""The command line, with few rows of table 1."""

import sys
from collections.abc import Sequence
from dataclasses import replace

from collegium.cli.app import main
from collegium.paper import command
from collegium.paper.experiment import Best, Experiment, Row
from collegium.paper.specification import Specification
from collegium.paper.table1 import table1


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
