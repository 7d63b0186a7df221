"""Smaller models cut out of a model: what is measured, what is kept, and the cut itself (Minitron).

Width costs one forward pass over the calibration text to rank; depth by loss costs (L^2 - n^2) / 2.
"""
