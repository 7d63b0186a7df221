"""Sections of a recipe: what each key accepts, with its unit and its error. No torch here."""
