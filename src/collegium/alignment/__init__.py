"""Teachers with other tokenizers: the same bytes cut in two ways, and what is predicted carried across.

May import `fused` and what is below. Begin with `plan`, which compares two cuts of one text, then `carry`.
"""
