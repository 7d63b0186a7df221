"""The work of the commands, from a recipe to a result in the run folder.

May import `assembly` and what is below. Begin with `train`: it makes a `Run`, trains, measures and writes.
"""
