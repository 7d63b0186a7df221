"""Measurement and statistics: losses of held-out documents, what models write, tasks, intervals and tests.

May import `models`, `data` and what is below. Begin with `language_modeling`, which reads held-out text with a
student and its teachers, then `statistics`.
"""
