"""Measurements of what the package costs. `python -m benchmarks` runs them all; each also runs alone."""
