"""Teachers on disk: their predictions on prepared text, with every read verified.

May import `fused` and what is below. Begin with `manifest`, which says what a cache holds, then `builder` and
`reader`.
"""
