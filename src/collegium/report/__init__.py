"""A run folder for people: the report page, its figures and the model card, from plain data. No torch.

May import `recipe` and what is below. Begin with `evaluation`, which holds every measurement, and `metric_names`,
which spells every metric; then `page`, which lays out the report.
"""
