"""Whatever can score tokens, behind the one protocol of `signals.contracts.Teacher`.

May import `models`, `cache`, `alignment` and what is below. Begin with `local`, a model that runs here; `collect`
makes teachers from what users of the Python interface give.
"""
