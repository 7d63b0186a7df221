"""From a recipe to objects: the only place where a `kind:` meets a class.

May import every room but `pipeline` and what rests on it. Begin with `run`: a `Run` makes each part once and on
demand. The other modules make one part each: they take the run, or the one section that they read, and hand plain
arguments to the rooms below, which know no recipe.
"""
