"""The student's loop: an objective, the model that computes it inside `forward`, checkpoints, rollouts.

May import `teachers`, `evaluation` and what is below. Begin with `objective`, the terms of one loss, then `model`
and `trainer`.
"""
