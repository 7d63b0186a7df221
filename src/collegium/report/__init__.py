"""A run folder as people read it: one page, its figures and its model card, from plain data. No torch.

May import `recipe` and what is below. Begin with `page`, which lays out the report, and `records`, which reads a
run folder.
"""
