"""The quickstart: three adapted teachers and one student, from ordinary packages.

Rests on `pipeline`; only `cli` may import it. Begin with `run`.
"""
