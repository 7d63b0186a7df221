"""Text, from sources to batches, and rows of tasks.

May import `alignment` and what is below. Begin with `sources`, then `preparation` (sources to packed blocks on
disk) and `collate` (blocks to a batch).
"""
