"""Pure functions of tensors, one value a position: divergences, fusion, weighting, features, relations.

May import `signals`. They hold no state, keep float64, and each has a plain float64 reference in its tests. Begin
with `divergences`; a new divergence goes there.
"""
