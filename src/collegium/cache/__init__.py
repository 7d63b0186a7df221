"""Teachers on disk: what they said of prepared text, with every read checked.

May import `fused` and what is below. Begin with `manifest`, which says what a cache holds, then `builder` and
`reader`.
"""
