"""Measurement on held-out text, and how sure one can be of it."""
