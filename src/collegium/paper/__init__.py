"""The paper's experiments, from rows to results: `collegium reproduce`.

Rests on `pipeline`; only `cli` may import it. Begin with `experiment` (rows, budgets and seeds) and `command`.
"""
