"""Teachers with other tokenizers: the same bytes tokenized in two ways, and predictions carried across.

May import `fused` and what is below. Begin with `plan`, which compares two cuts of one text, then `carry`.
"""
