"""The sections of a recipe, each with its fields, bounds and defaults; a field's docstring is its help."""
