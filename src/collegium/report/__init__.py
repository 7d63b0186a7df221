"""A run folder as people read it: one page, its figures and its model card, from plain data. No torch.

May import `recipe` and what is below. Begin with `evaluation`, the type of all that is measured, and
`metric_names`, which spells every metric; then `page`, which lays out the report.
"""
