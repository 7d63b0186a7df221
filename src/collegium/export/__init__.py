"""A student in the formats of other programs, read back before it is published.

May import `models`, `data` and what is below. Begin with `artefact`, which writes, reads back and compares.
"""
