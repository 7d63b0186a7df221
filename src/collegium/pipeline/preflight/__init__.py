"""Judging whether these teachers can help on this text, and a trial of what the run will take.

Begin with `judge`.
"""
