"""From a recipe to objects: the only place where a `kind:` meets a class.

May import every room but `pipeline` and what rests on it. Components take plain arguments; the functions here read
the sections and pass them on. Begin with `ingredients`.
"""
