"""What the commands do, from a recipe to a result in the run folder.

May import `assembly` and what is below. Begin with `run`: prepare, train and evaluate.
"""
