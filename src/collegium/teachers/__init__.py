"""Kinds of teachers behind one protocol, `signals.contracts.Teacher`.

May import `models`, `cache`, `alignment` and what is below. Begin with `local`, a model that runs here; `collect`
makes teachers of the models that users of the Python interface give.
"""
